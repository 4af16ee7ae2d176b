"""The same loop nest with fewer, better ordered dimensions: size-1 dimensions dropped, neighbours merged, dims
reordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec


def simplify(spec: KernelSpec) -> KernelSpec:
    """``spec`` without dimensions of size 1, and with dimensions merged wherever every address steps through them as
    one.
    """
    return merge(_drop_units(spec))


def merge(spec: KernelSpec, lines: int = 0) -> KernelSpec:
    """``spec`` with dimensions merged wherever every address steps through them as one, but for the first ``lines``."""
    merged = _merge_once(spec, lines)
    while merged is not None:
        spec, merged = merged, _merge_once(merged, lines)
    return spec


def reorder(spec: KernelSpec, order: Sequence[int]) -> KernelSpec:
    """The nest with ``dims[order[0]]`` outermost; parallel dimensions must stay before the reduction ones."""
    renamed = {f"d{old}": var(f"d{new}") for new, old in enumerate(order)}
    return _rewrite(spec, tuple(spec.dims[old] for old in order), renamed)


def _drop_units(spec: KernelSpec) -> KernelSpec:
    kept = [i for i, d in enumerate(spec.dims) if d.size.constant != 1]
    if all(spec.dims[i].kind == "parallel" for i in kept):  # a reduction over one element keeps its loop
        kept += [i for i, d in enumerate(spec.dims) if d.kind == "reduction"][:1]
    renamed = {f"d{i}": const(0) for i in range(len(spec.dims)) if i not in kept}
    renamed |= {f"d{old}": var(f"d{new}") for new, old in enumerate(kept)}
    return _rewrite(spec, tuple(spec.dims[i] for i in kept), renamed)


def _merge_once(spec: KernelSpec, lines: int) -> KernelSpec | None:
    exprs = [v for instr in spec.body for _, v in instr.attributes if isinstance(v, Expr)]
    for outer, o in enumerate(spec.dims):
        for inner, i in enumerate(spec.dims):
            if outer == inner or o.kind != i.kind or min(outer, inner) < lines:
                continue
            if all(_steps_as_one(e, f"d{outer}", f"d{inner}", i.size) for e in exprs):
                kept = [k for k in range(len(spec.dims)) if k != outer]
                renamed = {f"d{old}": var(f"d{new}") for new, old in enumerate(kept)}
                renamed[f"d{outer}"] = const(0)
                dims = tuple(replace(spec.dims[k], size=o.size * i.size) if k == inner else spec.dims[k] for k in kept)
                return _rewrite(spec, dims, renamed)
    return None


def _steps_as_one(expr: Expr, outer: str, inner: str, size: Expr) -> bool:
    a, b = expr.coefficient(outer), expr.coefficient(inner)
    return a is not None and b is not None and a == b * size


def _rewrite(spec: KernelSpec, dims: tuple[Dim, ...], renamed: dict[str, Expr]) -> KernelSpec:
    def instruction(instr: Instr) -> Instr:
        attributes = tuple((k, v.substitute(renamed) if isinstance(v, Expr) else v) for k, v in instr.attributes)
        return replace(instr, attributes=attributes)

    return replace(spec, dims=dims, body=tuple(instruction(i) for i in spec.body))
