"""Groups of a sum: where something is the same for so many neighbours along it, as scales of codes are."""

from __future__ import annotations

from dataclasses import replace

from effc.compiler.ir.expr import Call, Expr, const, var
from effc.compiler.ir.spec import Dim, KernelSpec

#: Groups of other sizes are no axis of a tile.
_LEAST, _MOST = 16, 1024


def by_groups(spec: KernelSpec) -> tuple[KernelSpec, int]:
    """``spec`` with its only reduction dim as two, groups and places in a group, where addresses divide it by a power of two; and the
    size of a group, 0: it is as it was.
    """
    summed = [i for i, d in enumerate(spec.dims) if d.kind == "reduction"]
    size = spec.dims[summed[0]].size.constant if len(summed) == 1 else None
    if size is None:
        return spec, 0
    name = f"d{summed[0]}"
    exprs = [e for instr in spec.body for _, e in instr.attributes if isinstance(e, Expr)]
    sizes = {atom.rhs.constant for e in exprs for atom in _divisions(e) if atom.lhs == var(name)}
    group = next(iter(sizes)) if len(sizes) == 1 else None
    if group is None or not _LEAST <= group <= _MOST or group & (group - 1) or size % group:
        return spec, 0
    inner = len(spec.dims)
    place: dict[str, Expr | int] = {name: var(name) * group + var(f"d{inner}")}
    ranges = {f"d{i}": d.size for i, d in enumerate(spec.dims)} | {
        name: const(size // group),
        f"d{inner}": const(group),
    }
    body = tuple(
        replace(
            instr,
            attributes=tuple(
                (k, v.substitute(place, ranges) if isinstance(v, Expr) else v) for k, v in instr.attributes
            ),
        )
        for instr in spec.body
    )
    dims = [*spec.dims, Dim(const(group), "reduction")]
    dims[summed[0]] = Dim(const(size // group), "reduction")
    return replace(spec, dims=tuple(dims), body=body), group


def _divisions(e: Expr) -> list[Call]:
    return [a for monomial, _ in e.terms for a in monomial if isinstance(a, Call) and a.fn == "//"]
