"""``effc-opt``: run any list of passes on graph IR as text. ``lit/`` tests use it, and reproducers are written for it.

    effc-opt FILE.mlir -p 'pass{option=value},mlir:canonicalize'

Reads the module, verifies it, runs the passes with the verifier after each, prints the module. With ``--emit kernels``
the module then goes through the rest of the pipeline, and the program made from it is printed; with ``--emit code``, the
MLIR that is emitted for each kernel (for a GPU, what Triton takes); with ``--emit regions``, which kernels could be one.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from effc.compiler.ir.errors import EffcError, OptionError
from effc.compiler.ir.instruments import Dump, Timing, module_text
from effc.compiler.ir.pass_text import describe_type, parse_pipeline
from effc.compiler.ir.passes import Instrument, Pass, PassManager, Upstream
from effc.compiler.ir.program_text import program_text
from effc.passes import registry


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 1 after one message on stderr."""
    args = _parser().parse_args(argv)
    try:
        known = passes()
        if args.list:
            sys.stdout.write(listing(known))
            return 0
        if args.file is None:
            raise OptionError("no input: name a file of graph IR, or - for standard input")
        timing = Timing()
        instruments: list[Instrument] = [timing]
        if args.dump_dir is not None:
            instruments.append(Dump(args.dump_dir))
        text = run(_read(args.file), args.pipeline, known, instruments, locations=args.locations or args.emit != "ir")
        if args.emit != "ir":
            text = emit(text, args.emit, args.target)
        if args.output is None:
            sys.stdout.write(text)
        else:
            args.output.write_text(text)
        if args.timing:
            for name, seconds in timing.seconds.items():
                print(f"{seconds * 1e3:9.2f} ms  {name}", file=sys.stderr)
    except (EffcError, OSError) as error:
        print("\n".join([f"effc-opt: error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    return 0


def run(
    text: str,
    pipeline: str,
    known: Mapping[str, type[Pass]],
    instruments: Sequence[Instrument] = (),
    *,
    locations: bool = False,
) -> str:
    """``text`` after the passes that ``pipeline`` lists; EffcError where it does not parse, verify or transform."""
    from torch_mlir import ir

    from effc.compiler.ir.dialect import new_context

    steps = parse_pipeline(pipeline, known)
    with new_context():
        for step in steps:  # an unknown upstream pass is found before anything runs
            if isinstance(step, Upstream):
                step.parse()
        try:
            module = ir.Module.parse(text)
        except ir.MLIRError as error:
            raise EffcError(f"the input is not IR: {error}") from None
        PassManager(steps, tuple(instruments)).run(module)
        return module_text(module) if locations else f"{module}"


def emit(text: str, what: str, target: str) -> str:
    """The program that the pipeline makes of graph IR for ``target``, as text; with ``"code"`` its kernels' MLIR, with ``"regions"`` the
    regions that are found among them, on a CPU.
    """
    from effc.compiler.codegen.cpu.emit import emit as emit_kernel
    from effc.compiler.codegen.cpu.target import Target
    from effc.compiler.codegen.gpu.emit import emit as emit_launches
    from effc.compiler.codegen.targets import target_named
    from effc.compiler.pipeline.lower import kernels_of, lower
    from effc.compiler.pipeline.regions_text import regions_text

    try:
        chosen = target_named(target)
    except ValueError as error:
        raise OptionError(f"--target: {error}") from None
    if what == "regions":
        if not isinstance(chosen, Target):
            raise OptionError(f"--emit regions is for CPUs: on {target} no kernels become one")
        return regions_text(*kernels_of(text, chosen))
    program = lower(text, {"target": target})
    if what == "kernels":
        return program_text(program)
    if isinstance(chosen, Target):
        return "\n".join(emit_kernel(spec, chosen) for spec in program.kernels)
    return "\n".join(launch.text for spec in program.kernels for launch in emit_launches(spec, chosen).launches)


def passes() -> dict[str, type[Pass]]:
    """Every pass there is: those of ``effc.passes`` and those that the pipeline itself holds."""
    importlib.import_module("effc.compiler.pipeline")
    return registry()


def listing(known: Mapping[str, type[Pass]]) -> str:
    """Each pass with its first sentence and its options, a line each."""
    lines = [] if known else ["effc registers no passes of its own; MLIR's are written mlir:NAME"]
    for name, cls in known.items():
        lines.append(f"{name}: {(cls.__doc__ or '').strip().splitlines()[0]}")
        for f in dataclasses.fields(cls):
            default = "" if f.default is dataclasses.MISSING else f" (default {f.default})"
            lines.append(f"    {f.name}: {describe_type(cls, f.name)}{default}")
    return "".join(f"{line}\n" for line in lines)


def _read(file: str) -> str:
    return sys.stdin.read() if file == "-" else Path(file).read_text()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="effc-opt", description="Run passes on graph IR and print what comes out.")
    parser.add_argument("file", nargs="?", help="graph IR as text; - is standard input")
    parser.add_argument("-p", "--pipeline", default="", help="passes in order: 'pass{option=value},mlir:canonicalize'")
    parser.add_argument("-o", "--output", type=Path, help="write here instead of standard output")
    parser.add_argument(
        "--emit", choices=("ir", "kernels", "code", "regions"), default="ir", help="what to print (default: ir)"
    )
    parser.add_argument(
        "--target",
        default="host",
        help="what --emit is for: host, avx512, avx2, x86-64, sm_80, sm_90+tma, … (default: host)",
    )
    parser.add_argument("--list", action="store_true", help="list the passes and their options")
    parser.add_argument("--locations", action="store_true", help="print source locations")
    parser.add_argument("--dump-dir", type=Path, help="write the IR after every pass into this folder")
    parser.add_argument("--timing", action="store_true", help="print the time of each pass to standard error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
