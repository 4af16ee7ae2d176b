"""``effc.attention`` → a kernel of the ``attention`` template (its layout: ``compiler/codegen/cpu/attention/``)."""

from __future__ import annotations

from math import gcd

from effc.compiler.ir.expr import Expr, Var, const, floordiv, var
from effc.compiler.ir.spec import Dim, KernelSpec, Operand
from effc.compiler.pipeline.graph import Op, Tensor
from effc.compiler.pipeline.kernels import normalised
from effc.compiler.pipeline.placed import Kernel, Site
from effc.compiler.pipeline.placement import Layout, extent, row_major, strides_before
from effc.compiler.pipeline.views import Index, chain, source_index

#: Of batch, heads, queries, keys, channels of q and k, channels of v.
ITERATORS = ("parallel", "parallel", "parallel", "reduction", "reduction", "parallel")


def describe(op: Op) -> None:
    """Give an attention its loop nest: dims, and where each operand and result stands in them."""
    q, k, v, *masks = op.operands
    batch, heads, queries, head = (var(f"d{i}") for i in range(4))
    keys, channel, out_channel = var("d3"), var("d4"), var("d5")
    op.dims = (*q.sizes[:3], k.sizes[2], q.sizes[3], v.sizes[3])
    op.iterators = ITERATORS
    shared = floordiv(heads, floordiv(q.sizes[1], k.sizes[1]), {"d1": q.sizes[1]})
    point = (batch, heads, queries, head)
    maps: list[Index] = [
        (batch, heads, queries, channel),
        (batch, shared, keys, channel),
        (batch, shared, keys, out_channel),
    ]
    maps += [tuple(const(0) if s.constant == 1 else e for s, e in zip(m.sizes, point, strict=True)) for m in masks]
    op.maps = tuple(maps)
    op.result_maps = ((batch, heads, queries, out_channel), (batch, heads, queries))[: len(op.results)]


def mask_strides(tensor: Tensor) -> tuple[Expr, ...] | None:
    """Strides of a stored tensor by which an attention reads it, as a mask, along its keys; None where none does, or no strides do that.

    A table of biases that is gathered for pairs of positions has its heads innermost: as many reads as elements.
    """
    for user in tensor.users:
        if user.is_view:
            strides = mask_strides(user.results[0])
            if strides is not None:
                return strides_before([user], strides)
        elif user.kind == "attention" and tensor in user.operands[3:]:
            return row_major(tensor.sizes)
    return None


def build_attention(op: Op, layout: Layout) -> Kernel:
    """The kernel; its logsumexp is written where somebody reads it."""
    ranges = {f"d{i}": size for i, size in enumerate(op.dims)}
    attributes: dict[str, object] = {
        "causal": int(op.attributes["causal"]),
        "nan": int(op.attributes["nan_rows"]),
        "scale": float(op.attributes["scale"]),
    }
    sites: list[Site] = []
    operands: list[Operand] = []

    def add(name: str, tensor: Tensor, index: Index, role: str) -> None:
        root, views = chain(tensor)
        place = layout.places[root]
        attributes[name] = place.address(source_index(views, index, ranges))
        sites.append(Site(place.base, place.offset, root.dtype))
        operands.append(Operand(root.dtype, role, extent(root.sizes, place.strides)))

    reads = dict(zip(("q", "k", "v", "mask"), zip(op.operands, op.maps, strict=True), strict=False))
    for name in ("q", "k", "v"):
        add(name, *reads[name], "read")
    add("out", op.results[0], op.result_maps[0], "write")
    if "mask" in reads:
        add("mask", *reads["mask"], "read")
    if len(op.results) > 1 and op.results[1] in layout.places:
        add("lse", op.results[1], op.result_maps[1], "write")
    attributes["group"] = _group(attributes["k"], attributes["v"])
    dims = tuple(Dim(size, kind) for size, kind in zip(op.dims, ITERATORS, strict=True))
    spec = KernelSpec("attention", dims, tuple(operands), (), (), tuple(sorted(attributes.items())))
    spec, symbols = normalised(spec)
    return Kernel(spec, tuple(sites), symbols, "attention", op.location)


def _group(*addresses: object) -> int:
    """How many neighbouring heads have the same k and v, by the addresses: both depend on ``d1`` through ``d1 // group`` only."""
    found: set[int] = set()

    def visit(e: Expr) -> None:
        for mono, _ in e.terms:
            for atom in mono:
                if isinstance(atom, Var):
                    found.update([1] if atom.name == "d1" else [])
                elif atom.fn == "//" and atom.lhs == var("d1") and atom.rhs.constant is not None:
                    found.add(atom.rhs.constant)
                else:
                    visit(atom.lhs)
                    visit(atom.rhs)

    for address in addresses:
        assert isinstance(address, Expr)
        visit(address)
    return gcd(*found) if found else 1
