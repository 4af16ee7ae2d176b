"""Which factor of a contraction to pack into panels, and how.

The program builder asks `packing` with the operands whose values are constant; it takes the returned spec, whose schedule asks for
this layout, and derives the panels by the returned function of ``runtime/derive.py`` with the returned attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.form import filled_to, packed_group
from effc.compiler.codegen.cpu.contraction.roles import Nest, drop_units, factors, find
from effc.compiler.codegen.cpu.contraction.schedule import chosen
from effc.compiler.codegen.cpu.contraction.sides import Side, read_side, split_groups
from effc.compiler.codegen.cpu.skipping.choice import chosen as chosen_skipping
from effc.compiler.codegen.cpu.skipping.form import Form as SkippingForm
from effc.compiler.codegen.cpu.sparse.choice import AnyPlan, plan_of
from effc.compiler.codegen.cpu.sparse.choice import chosen as chosen_sparse
from effc.compiler.codegen.cpu.sparse.form import find as find_sparse
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.winograd.choice import chosen as chosen_winograd
from effc.compiler.codegen.cpu.winograd.form import SIDE, TAPS, Form
from effc.compiler.codegen.cpu.winograd.form import find as find_winograd
from effc.compiler.codegen.cpu.winograd.plan import Plan
from effc.compiler.ir.expr import Expr, const, product
from effc.compiler.ir.spec import KernelSpec, Operand, Schedule


@dataclass(frozen=True)
class Packing:
    """``operand`` of the spec becomes ``packed``. ``spec`` is the contraction with that role, size and schedule, and behind its operands
    the scratch memory that the schedule needs; ``attributes`` are the arguments of ``function`` for the tensor that the operand
    pointed to (elements from its first). ``further``: ``(operand, function, attributes)`` of what else is packed: zero points and scales;
    operands behind those of the contraction are made of the same tensor.
    """

    operand: int
    spec: KernelSpec
    function: str
    attributes: tuple[tuple[str, Any], ...]
    further: tuple[tuple[int, str, tuple[tuple[str, Any], ...]], ...] = ()

    def derivations(self) -> list[tuple[int, str, dict[str, Any]]]:
        """``(operand, function, attributes)`` of all packed operands."""
        packed = ((self.operand, self.function, self.attributes), *self.further)
        return [(operand, function, dict(attributes)) for operand, function, attributes in packed]


def packing(
    spec: KernelSpec, constants: Collection[int], target: Target, wanted: Mapping[str, Schedule] | None = None
) -> Packing | str:
    """How to pack one of the operands ``constants`` of ``spec``, or the reason why none can be.

    Where both factors are constant, the one that the kernel would read by columns is packed. ``wanted``: a plan's schedules
    by ``KernelSpec.key()``.
    """
    quantized = _quantized(spec)
    if quantized is not None:
        return _pack(spec, quantized.operand, target, wanted or {}, quantized, constants)
    nest = find(spec)
    # A border beside a factor that is not packed has no kernel, beside one that is it may have.
    operands = factors(spec) if isinstance(nest, str) else (nest.right.operand, nest.left.operand)
    reason = nest if isinstance(nest, str) else "no factor of the contraction is constant"
    for operand in operands:
        if operand in constants:
            found = _pack(spec, operand, target, wanted or {})
            if isinstance(found, Packing):
                return found
            reason = found
    return reason


def _quantized(spec: KernelSpec) -> Side | None:
    """The factor of ``spec`` that is quantized, for which there are kernels in packed form only."""
    contracts = [instr for instr in spec.body if instr.op == "contract"]
    sides = [read_side(spec, arg) for instr in contracts for arg in instr.args]
    return next((s for s in sides if isinstance(s, Side) and s.quantized), None)


def _pack(
    spec: KernelSpec,
    operand: int,
    target: Target,
    wanted: Mapping[str, Schedule],
    quantized: Side | None = None,
    constants: Collection[int] = (),
) -> Packing | str:
    """``quantized``: the factor where it is; all that it is made of is then looked for in ``constants``."""
    grains = quantized.grains if quantized is not None else ()
    together = [operand, *(g.operand for g in grains)]
    if quantized is not None and not {*together} <= {*constants}:
        return "codes, scales and zero points are packed where all of them are constant"
    loads = [i for o in together for i, instr in enumerate(spec.body) if instr.op == "load" and instr["operand"] == o]
    if len(loads) != len(together):
        return "the constant factor is read more than once"
    roles = tuple(replace(o, role="packed") if i in together else o for i, o in enumerate(spec.operands))
    packed = replace(spec, operands=roles)
    nest = cast(packed, target)
    if isinstance(nest, str):
        return nest
    assert nest.column is not None, "roles.find packs no factor without columns"
    view = _view(nest, loads[0], _summed(spec, nest, loads[0]))
    groups = nest.groups
    along = [] if groups is None else [groups]
    coarse = [_view(nest, load, [(nest.size(k), nest.stride(load, k)) for k in along]) for load in loads[1:]]
    if view is None or None in coarse:
        return "the sizes and strides of the constant factor are not known numbers"
    offset, whole, strides = view
    request = wanted.get(packed.key())
    sparse = chosen_sparse(packed, target, request)
    if sparse is not None:
        return _without_zeros(packed, operand, sparse, offset)
    winograd = chosen_winograd(packed, target, request)
    if winograd is not None:
        return _transformed(packed, operand, *winograd, offset, target)
    skipping = chosen_skipping(packed, target)
    if skipping is not None:
        source = {"offset": offset, "sizes": whole, "strides": strides}
        return _skipping(packed, operand, *skipping, source, _inner_count(spec, nest))
    schedule = chosen(nest, target, request)
    nr, reduce = int(schedule["nr"]), len(whole) - len(nest.batch) - 1
    inner = _inner_count(spec, nest)
    group, filled = packed_group(nest), filled_to(nest, target)
    innermost = prod(whole[len(whole) - inner :])
    k = prod(whole[len(whole) - reduce : len(whole) - inner]) * (-(-innermost // filled) * filled)
    panels = prod(whole[: len(nest.batch)]) * -(-whole[len(nest.batch)] // nr) * nr
    bits = 8 if nest.right.format is None else nest.right.format.stored_bits
    attributes = {
        "offset": offset,
        "sizes": whole,
        "strides": strides,
        "batch": len(nest.batch),
        "inner": inner,
        "nr": nr,
        "group": group,
        "filled": filled,
    }
    sizes, packs = {operand: panels * k * bits // 8}, []
    for grain, coarser in zip(grains, coarse, strict=True):
        assert coarser is not None, "checked above"
        own = {
            **attributes,
            "offset": coarser[0],
            "sizes": coarser[1],
            "strides": coarser[2],
            "inner": 0,
            "group": 1,
            "filled": 1,
        }
        packs.append((grain.operand, "pack_panels", tuple(sorted(own.items()))))
        sizes[grain.operand] = panels * prod(coarser[1][len(nest.batch) + 1 :])
    operands = tuple(replace(o, size=const(sizes[i])) if i in sizes else o for i, o in enumerate(roles))
    found, function = replace(packed, operands=operands, schedule=schedule), "pack_panels"
    if nest.right.format is not None:
        function, attributes["bits"] = "pack_codes", nest.right.format.bits
        attributes["limits"] = nest.right.format.limits
    return Packing(operand, found, function, tuple(sorted(attributes.items())), tuple(packs))


def _view(
    nest: Nest, load: int, summed: Sequence[tuple[Expr, Expr | None]]
) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """Offset, sizes and strides of what ``load`` reads along the batch, the columns and ``summed`` (size, stride); None where they are
    not known.
    """
    address = nest.address(load)
    assert nest.column is not None, "asked for packed factors only"
    dims = [*nest.batch, nest.column]
    sizes = [_known(nest.spec.dims[i].size) for i in dims] + [_known(size) for size, _ in summed]
    strides = [_known(address.coefficient(f"d{i}")) for i in dims] + [_known(stride) for _, stride in summed]
    offset = _known(address.substitute({v: const(0) for v in address.variables()}))
    known, steps = tuple(s for s in sizes if s is not None), tuple(s for s in strides if s is not None and s >= 0)
    return (offset, known, steps) if offset is not None and len(known) == len(steps) == len(sizes) else None


def _transformed(
    packed: KernelSpec, operand: int, form: Form, schedule: Schedule, offset: int, target: Target
) -> Packing:
    """The packing of Winograd's method; the sizes and strides of the factor are known numbers."""
    nest = form.nest
    assert nest.column is not None, "the form has columns"
    dims = [*form.groups, nest.column, *form.channels, form.height[1], form.width[1]]
    attributes = {
        "batch": len(form.groups),
        "nr": schedule["nr"],
        "offset": offset,
        "sizes": tuple(_number(nest.size(i)) for i in dims),
        "strides": tuple(_number(nest.stride(nest.right.load, i)) for i in dims),
    }
    spec = with_winograd(packed, Plan.of(form, schedule, target), schedule)
    return Packing(operand, spec, "winograd_panels", tuple(sorted(attributes.items())))


def with_winograd(packed: KernelSpec, plan: Plan, schedule: Schedule) -> KernelSpec:
    """``packed`` under a schedule of Winograd's method, with the sizes that it asks for."""
    factor = plan.form.nest.right.operand
    operands = [
        replace(o, size=const(plan.kernel_elements)) if i == factor else o for i, o in enumerate(packed.operands)
    ]
    scratch = Operand("f32", "scratch", const(plan.scratch_elements))
    return replace(packed, operands=(*operands, scratch), schedule=schedule)


def _without_zeros(packed: KernelSpec, operand: int, plan: AnyPlan, offset: int) -> Packing:
    """The packing of a sparse factor, whose sizes and strides are known numbers."""
    function, attributes = plan.derivation(offset)
    return Packing(operand, with_sparse(packed, plan), function, tuple(sorted(attributes.items())))


def with_sparse(packed: KernelSpec, plan: AnyPlan) -> KernelSpec:
    """``packed`` under the schedule of a sparse kernel, with the sizes that it asks for."""
    factor = plan.form.nest.right.operand
    operands = [
        replace(o, size=const(plan.packed_elements)) if i == factor else o for i, o in enumerate(packed.operands)
    ]
    if plan.scratch_elements:
        operands.append(Operand("f32", "scratch", const(plan.scratch_elements)))
    return replace(packed, operands=tuple(operands), schedule=plan.schedule)


def _skipping(
    packed: KernelSpec, operand: int, form: SkippingForm, schedule: Schedule, source: Mapping[str, Any], inner: int
) -> Packing:
    """The packing of a factor, what ``source`` says of a tensor, of which zeros leave out rows. Panels of one column are the rows of the
    matrix ``[columns][sum]``. Zeros times weights are zero if these are finite: a further packed operand says so.
    """
    by_outputs = form.method == "outputs"
    nr = 1 if by_outputs else int(schedule["width"])
    attributes = {**source, "batch": 0, "inner": inner, "nr": nr, "group": 1, "filled": 1}
    size = const(-(-form.columns // nr) * nr * form.sum)
    operands = [replace(o, size=size) if i == operand else o for i, o in enumerate(packed.operands)]
    further: tuple[tuple[int, str, tuple[tuple[str, Any], ...]], ...] = ()
    if not by_outputs:
        operands.append(Operand("f32", "packed", const(1)))
        further = ((len(packed.operands), "not_finite", tuple(sorted(source.items()))),)
    spec = replace(packed, operands=tuple(operands), schedule=schedule)
    return Packing(operand, spec, "pack_panels", tuple(sorted(attributes.items())), further)


def repacked(spec: KernelSpec, schedule: Schedule, target: Target) -> KernelSpec:
    """``spec`` under another schedule, with the layout of its packed factor and the scratch memory that this one asks for."""
    nest = cast(spec, target)
    assert not isinstance(nest, str), nest
    if not nest.right.packed:
        return replace(spec, schedule=schedule)
    if spec.schedule.get("skip"):
        return spec  # the only one that `schedules.candidates` offers
    plain = replace(spec, operands=tuple(o for o in spec.operands if o.role != "scratch"))
    if schedule.get("winograd"):
        form = find_winograd(plain, target)
        assert not isinstance(form, str), form
        return with_winograd(plain, Plan.of(form, schedule, target), schedule)
    if schedule.get("sparse"):
        sparse = find_sparse(plain, target)
        assert not isinstance(sparse, str), sparse
        return with_sparse(plain, plan_of(sparse, schedule, target))
    columns = nest.size(nest.column).constant
    assert columns is not None, "only factors of known sizes are packed"
    if spec.schedule.get("sparse"):
        nr, filled = int(schedule["nr"]), filled_to(nest, target)
        steps = _number(product([nest.size(k) for k in nest.reduction]))
        whole = const(-(-columns // nr) * nr * -(-steps // filled) * filled)
        operands = tuple(replace(o, size=whole) if o.role == "packed" else o for o in plain.operands)
        return replace(plain, operands=operands, schedule=schedule)
    old, new = (-(-columns // s["nr"]) * s["nr"] for s in (spec.schedule, schedule))

    def resized(operand: Operand) -> Operand:
        assert operand.size.constant is not None, "only factors of known sizes are packed"
        each = operand.size.constant // old
        if spec.schedule.get("winograd"):
            each = each // SIDE**2 * TAPS**2
        return replace(operand, size=const(each * new))

    operands = tuple(resized(o) if o.role == "packed" else o for o in plain.operands)
    return replace(plain, operands=operands, schedule=schedule)


def _summed(spec: KernelSpec, nest: Nest, load: int) -> list[tuple[Expr, Expr | None]]:
    """Size and stride of each reduction dimension as the spec has them, in the kernel's order: it may have merged some that the source
    cannot.
    """
    plain = drop_units(_grouped(spec))
    address = plain.body[load]["address"]
    found = [(d.size, address.coefficient(f"d{i}")) for i, d in enumerate(plain.dims) if d.kind == "reduction"]
    return found[::-1] if nest.stacked else found


def _inner_count(spec: KernelSpec, nest: Nest) -> int:
    """How many of the spec's reduction dimensions make up the kernel's innermost one."""
    sizes = [d.size for d in drop_units(_grouped(spec)).dims if d.kind == "reduction"]
    if not sizes or nest.stacked:
        return min(len(sizes), 1)
    target = nest.spec.dims[nest.reduction[-1]].size
    total = const(1)
    for count, size in enumerate(reversed(sizes), 1):
        total = total * size
        if total == target:
            return count
    raise AssertionError("the kernel's sums are products of neighbouring sums of the spec")


def _grouped(spec: KernelSpec) -> KernelSpec:
    split = split_groups(spec)
    assert not isinstance(split, str), "checked by roles.find"
    return split


def _number(value: Expr) -> int:
    assert value.constant is not None, "checked by _pack"
    return value.constant


def _known(value: Expr | None) -> int | None:
    return None if value is None else value.constant
