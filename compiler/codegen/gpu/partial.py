"""A reduction that is the work of few programs as two: parts of it by programs of their own, into scratch memory, and what is made of them.

So a sum of everything, or of long columns, keeps all processors busy; its order is fixed, so results stay bit-identical.
"""

from __future__ import annotations

from dataclasses import replace

from effc.compiler.codegen.gpu.body import flat_size
from effc.compiler.codegen.gpu.contraction.rewritten import folding
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand, Schedule

_KINDS = frozenset({"add", "mul", "max", "min"})
#: Elements of one program from which on a second launch is worth it, the least of a part, and the most parts.
_LEAST_WORK, _LEAST_PART, _MOST_PARTS = 16384, 64, 1024


def parts_of(spec: KernelSpec, programs: int, rows: int, processors: int) -> int:
    """Into how many parts the first reduction dim of ``spec`` is cut, now the work of ``programs`` that reduce ``rows`` rows each; 1: it
    stays whole.

    Cut is a single reduction in float32 of which nothing at its points needs the result.
    """
    first = sum(d.kind == "parallel" for d in spec.dims)
    reduces = [i for i, instr in enumerate(spec.body) if instr.op == "reduce"]
    points = flat_size(spec, range(first, len(spec.dims))).constant
    if len(reduces) != 1 or points is None or spec.symbols or any(o.role == "readwrite" for o in spec.operands):
        return 1
    (at,) = reduces
    if spec.body[at].dtype != "f32" or spec.body[at]["kind"] not in _KINDS or points * rows < _LEAST_WORK:
        return 1
    levels, later = spec.levels(), {at}
    for i, instr in enumerate(spec.body):
        later |= {i} if later & set(instr.args) else set()
        if levels[i] > first and (i in later or instr.op in ("store", "check")):
            return 1
    size = spec.dims[first].size.constant or 1
    most = min(processors // programs, _MOST_PARTS, points // _LEAST_PART)
    return max((p for p in range(2, most + 1) if size % p == 0), default=1)


def in_parts(spec: KernelSpec, parts: int) -> tuple[KernelSpec, KernelSpec]:
    """The kernel that reduces each part into scratch memory, ``[part][row]``, and the one that reduces the parts and goes on as ``spec``
    does; scratch memory is the last operand of both.
    """
    first = sum(d.kind == "parallel" for d in spec.dims)
    at = next(i for i, instr in enumerate(spec.body) if instr.op == "reduce")
    row: Expr = const(0)
    for i in range(first):
        row = row * spec.dims[i].size + var(f"d{i}")
    rows = flat_size(spec, range(first))
    place = (("address", var(f"d{first}") * rows + row), ("operand", len(spec.operands)))
    scratch = Operand("f32", "write", rows * parts)
    length = (spec.dims[first].size.constant or 1) // parts
    moved: dict[str, Expr | int] = {f"d{i}": var(f"d{i + 1}") for i in range(first + 1, len(spec.dims))}
    moved[f"d{first}"] = var(f"d{first}") * length + var(f"d{first + 1}")
    body = [
        replace(
            instr, attributes=tuple((k, v.substitute(moved) if isinstance(v, Expr) else v) for k, v in instr.attributes)
        )
        for instr in spec.body[: at + 1]
    ]
    each = replace(
        spec,
        dims=(*spec.dims[:first], Dim(const(parts)), Dim(const(length), "reduction"), *spec.dims[first + 1 :]),
        operands=(*spec.operands, scratch),
        body=(*body, Instr("store", (at,), "", place)),
        schedule=Schedule(),
    )
    together = replace(
        spec,
        dims=(*spec.dims[:first], Dim(const(parts), "reduction")),
        operands=(*spec.operands, replace(scratch, role="read")),
        body=folding(spec, Instr("load", (), "f32", place)),
        schedule=Schedule(),
    )
    return each, together
