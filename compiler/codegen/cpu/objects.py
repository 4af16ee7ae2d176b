"""MLIR text → ELF object, through the LLVM that is bundled with the MLIR bindings. Runs in toolchain processes only.

``ExecutionEngine`` compiles for the host CPU; a lesser target is reached by switching features off on each function. A
symbol that is not defined in the module stays undefined in the object: the loader resolves it. The engine itself would
need it only to run the code, which never happens here, so its complaint about it is dropped.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.errors import LoweringError

if TYPE_CHECKING:
    from torch_mlir import ir

#: Every pass is needed by some kernel; the order follows MLIR's: structured control flow first, then one dialect at a
#: time.
PIPELINE = (
    "builtin.module(convert-vector-to-scf,convert-scf-to-cf,convert-math-to-llvm,convert-math-to-libm,"
    "convert-vector-to-llvm{enable-x86=true},convert-ub-to-llvm,convert-arith-to-llvm,convert-func-to-llvm,"
    "convert-cf-to-llvm,reconcile-unrealized-casts)"
)


#: Modules that are compiled in one context.
_MODULES_A_CONTEXT = 64
_compiled = itertools.count()

#: What the JIT says, over one or two lines, when it cannot link a function that needs a symbol of the loader's.
_NOISE = ("Symbols not found", "Failed to materialize symbols", "Could not compile")


def compile_object(mlir_text: str, target: Target, opt_level: int = 3) -> bytes:
    """The ELF relocatable object of a module; its public functions are the entries.

    ``opt_level``: of LLVM's passes over its IR; 0 suits straight-line code that is already tidy, in a third of the
    time. LoweringError, with MLIR's own words, where the text does not parse, lower or compile. By one thread of a process at a time:
    modules share a context.
    """
    from torch_mlir import ir, passmanager
    from torch_mlir.execution_engine import ExecutionEngine

    with _context(next(_compiled) // _MODULES_A_CONTEXT):
        try:
            module = ir.Module.parse(mlir_text)
            passes = passmanager.PassManager.parse(PIPELINE)
            passes.enable_verifier(False)  # after each of them: half of their time; once at the end is enough
            passes.run(module.operation)
            module.operation.verify()
        except ir.MLIRError as err:
            raise LoweringError(f"a kernel does not lower to LLVM: {err}") from err
        entries = _finish_functions(module, target)
        with _quiet_unresolved_symbols():
            engine = ExecutionEngine(module, opt_level=opt_level)
            for entry in entries:
                engine.raw_lookup(entry)
            with tempfile.TemporaryDirectory(prefix="effc-") as folder:
                path = Path(folder) / "kernel.o"
                engine.dump_to_object_file(str(path))
                if not path.exists() or path.stat().st_size == 0:
                    raise LoweringError(f"LLVM produced no object for {', '.join(entries)}")
                return path.read_bytes()


@lru_cache(maxsize=1)
def _context(generation: int) -> ir.Context:
    """MLIR's context for the next modules: making one, with all dialects, takes 5 ms. It keeps all attributes that it has met, so it is
    not used for ever.
    """
    from torch_mlir import ir

    context = ir.Context()
    context.enable_multithreading(False)
    return context


def _finish_functions(module: object, target: Target) -> list[str]:
    """Give every function the target's features and make helpers internal; returns the entries' names."""
    from torch_mlir import ir

    assert isinstance(module, ir.Module)
    changed = ", ".join(f'"{f}"' for f in (*target.removed_features, *target.added_features))
    features = ir.Attribute.parse(f"#llvm.target_features<[{changed}]>") if changed else None
    width = ir.Attribute.parse(f'"{8 * target.vector_bytes}"')
    internal = ir.Attribute.parse("#llvm.linkage<internal>")
    entries: list[str] = []
    for op in module.body.operations:
        operation = op.operation
        if operation.name != "llvm.func" or not operation.regions[0].blocks:
            continue
        operation.attributes["prefer_vector_width"] = width
        if features is not None:
            operation.attributes["target_features"] = features
        private = "sym_visibility" in operation.attributes
        if private or operation.attributes["linkage"] == internal:
            if private:  # LLVM's functions have a linkage only
                del operation.attributes["sym_visibility"]
            operation.attributes["linkage"] = internal
        else:
            entries.append(ir.StringAttr(operation.attributes["sym_name"]).value)
    if not entries:
        raise LoweringError("the module defines no public function")
    return entries


@contextmanager
def _quiet_unresolved_symbols() -> Iterator[None]:
    """Drop the JIT's "Symbols not found" lines from stderr; anything else that was written there is passed on."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as capture:
        os.dup2(capture.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            capture.seek(0)
            for line in capture.read().decode(errors="replace").splitlines():
                if line.strip() and not any(n in line for n in _NOISE):
                    print(line, file=sys.stderr)
