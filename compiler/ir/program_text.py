"""A ``Program`` for people: what ``effc-opt --emit kernels`` prints and lit tests match. Nothing reads it back.

Example::

    call 0: k0 "linear+relu" at model.py:12 (input 0, derived 0, output 0)

    kernel k0: contraction, d0: 32, d1: 512, reduction d2: 256, schedule mr=6 nr=64
      operands: read f32, packed f32, write f32
      v0 = load 0[256*d0 + d2] : f32
      v1 = load 1[256*d1 + d2] : f32
      v2 = contract v0 v1 : f32
      v3 = constant value=0.0 : f32
      v4 = arith.maximumf v2 v3 : f32
      store v4 to 2[512*d0 + d1]
"""

from __future__ import annotations

from effc.compiler.ir.expr import Expr
from effc.compiler.ir.program import Call, Pointer, Program, TensorSpec
from effc.compiler.ir.spec import Instr, KernelSpec


def program_text(program: Program) -> str:
    """The program's border, its calls in order, and its kernels; then, in the same form, what prepares its weights."""
    lines = [f"program({', '.join(program.symbols)}), arena of {program.arena_bytes} bytes"]
    for i, given in enumerate(program.inputs):
        lines.append(f"input {i}: {_tensor(given.tensor)}{f' param {given.param}' if given.param else ''}")
    for i, derived in enumerate(program.derived):
        origins = " and ".join(f"{kind} {index}" for kind, index in program.origins(derived.source))
        lines.append(f"derived {i}: {derived.function} of {origins}")
    for i, output in enumerate(program.outputs):
        place = "" if output.mutates is None else f" written to input {output.mutates}"
        lines.append(f"output {i}: {_tensor(output.tensor)}{place}")
    lines += [_call(i, call) for i, call in enumerate(program.calls)]
    lines += [f"note: {note}" for note in program.notes]
    text = "\n".join(lines) + "\n"
    for i, kernel in enumerate(program.kernels):
        text += f"\nkernel k{i}: {kernel_text(kernel)}"
    if program.prepare is not None:
        text += f"\nprepare: {program_text(program.prepare)}"
    return text


def kernel_text(spec: KernelSpec) -> str:
    """The loop nest on one line, then the operands, then an instruction a line."""
    dims = [f"{'reduction ' if d.kind == 'reduction' else ''}d{i}: {d.size}" for i, d in enumerate(spec.dims)]
    head = [spec.template, *dims, *(f"{k}={_value(v)}" for k, v in spec.attributes)]
    if spec.schedule.parameters:
        head.append("schedule " + " ".join(f"{k}={v}" for k, v in spec.schedule.parameters))
    operands = ", ".join(f"{o.role} {o.dtype}" for o in spec.operands)
    lines = [", ".join(head), f"  operands: {operands}"]
    lines += [f"  {_instruction(i, instr)}" for i, instr in enumerate(spec.body)]
    for i, stage in enumerate(spec.stages):
        first, _, *body = kernel_text(stage).splitlines()  # its operands are the block's
        lines += [f"  stage {i}: {first}", *(f"  {line}" for line in body)]
    return "\n".join(lines) + "\n"


def _instruction(number: int, instr: Instr) -> str:
    args = [f"v{a}" for a in instr.args]
    if instr.op in ("load", "store"):
        place = f"{instr['operand']}[{instr['address']}]"
        if instr.op == "store":
            return f"store {args[0]} to {place}" + (f" where {args[1]}" if len(args) > 1 else "")
        masked = f" where {args[0]} else {args[1]}" if args else ""
        return f"v{number} = load {place}{masked} : {instr.dtype}"
    words = [instr.op, *args, *(f"{k}={_value(v)}" for k, v in instr.attributes)]
    return f"v{number} = {' '.join(words)}" + (f" : {instr.dtype}" if instr.dtype else "")


def _call(number: int, call: Call) -> str:
    where = f" at {call.location}" if call.location else ""
    symbols = f" for ({', '.join(map(str, call.symbols))})" if call.symbols else ""
    return f'call {number}: k{call.kernel} "{call.name}"{where} ({", ".join(map(_pointer, call.pointers))}){symbols}'


def _pointer(pointer: Pointer) -> str:
    base = "arena" if pointer.base == "arena" else f"{pointer.base} {pointer.index}"
    return base if pointer.offset.constant == 0 else f"{base} + {pointer.offset}"


def _tensor(tensor: TensorSpec) -> str:
    sizes, strides = ", ".join(map(str, tensor.sizes)), ", ".join(map(str, tensor.strides))
    return f"{tensor.dtype}[{sizes}] strides ({strides})"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(value) if isinstance(value, Expr) else repr(value) if isinstance(value, float) else str(value)
