"""Kernels with a template of their own: scans, scatters, attention."""

from __future__ import annotations

from collections.abc import Callable

from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr, var
from effc.compiler.ir.spec import Instr
from effc.compiler.pipeline.attention import build_attention
from effc.compiler.pipeline.graph import Op
from effc.compiler.pipeline.kernels import KernelBuilder
from effc.compiler.pipeline.placed import Kernel
from effc.compiler.pipeline.placement import Layout


def _scan(op: Op, layout: Layout) -> Kernel:
    """Running reductions along one dim."""
    builder = KernelBuilder(layout, op.dims, frozenset(op.reduction_dims))
    index = op.maps[0]
    value = builder.value(op.operands[0], index)
    running = builder.add(Instr("reduce", (value,), op.results[0].dtype, (("kind", op.attributes["kind"]),)))
    if op.results[0] in layout.places:
        builder.store(running, op.results[0], layout.places[op.results[0]], index)
    if len(op.results) > 1 and op.results[1] in layout.places:
        along = builder.add(Instr("index", (), "i64", (("expr", index[op.attributes["dim"]]),)))
        kind = f"arg{op.attributes['kind']}"
        position = builder.add(Instr("reduce", (value, along), "i64", (("kind", kind),)))
        builder.store(position, op.results[1], layout.places[op.results[1]], index)
    return builder.finish("scan", f"scan_{op.attributes['kind']}", op.location)


def _scatter(op: Op, layout: Layout) -> Kernel:
    """Updates at computed places of a tensor that already holds its old values; an index out of range is reported, and skipped."""
    builder = KernelBuilder(layout, op.dims, frozenset())
    value = builder.value(op.operands[0], op.maps[0])
    target: dict[str, Expr | int] = {}
    for j, (tensor, amap) in enumerate(zip(op.operands[1:-1], op.maps[1:-1], strict=True)):
        index = builder.value(tensor, amap)
        if tensor.dtype != "i64":
            index = builder.add(Instr("arith.extsi", (index,), "i64"))
        target[f"s{j}"] = var(f"v{index}")
    zero = builder.add(Instr("constant", (), "i64", (("value", 0),)))
    inside: int | None = None
    for e, size in zip(op.maps[-1], op.results[0].sizes, strict=True):
        if not any(name[0] == "s" for name in e.variables()):
            continue
        position = int(str(e.substitute(target))[1:])
        limit = builder.add(Instr("index", (), "i64", (("expr", size),)))
        for predicate, other in (("sge", zero), ("slt", limit)):
            ok = builder.add(Instr("arith.cmpi", (position, other), "i1", (("predicate", predicate),)))
            inside = ok if inside is None else builder.add(Instr("arith.andi", (inside, ok), "i1"))
    if inside is not None:
        builder.instrs.append(Instr("check", (inside,), "", (("message", f"an index of {op.kind} is out of range"),)))
    place = layout.places[op.results[0]]
    element = tuple(e.substitute(target) for e in op.maps[-1])
    kind = "set" if op.attributes["kind"] == "assign" else op.attributes["kind"]
    builder.update(value, inside, op.results[0], place, element, kind)
    independent = (("independent_dims", op.attributes["independent"]),)
    return builder.finish("scatter", f"scatter_{op.attributes['kind']}", op.location, independent)


SPECIAL: dict[str, Callable[[Op, Layout], Kernel]] = {"scan": _scan, "scatter": _scatter, "attention": build_attention}


def build_special(op: Op, layout: Layout) -> Kernel:
    """The kernel of an operation that fuses with nothing."""
    if op.kind not in SPECIAL:
        raise LoweringError(f"no kernel template for {op.kind}, at {op.location}")
    return SPECIAL[op.kind](op, layout)
