"""``check=True``: every call of a region is repeated by ATen on the same inputs, in their dtype and in float64.

The bound is the project's definition of exact. With y the region's result, e ATen's and r the float64 one, for each
output: ``||y - r|| / ||r|| <= max(2x that of e, 4 eps)``, and for each element ``|y - r| <= max(2x e's worst, 8
ulp)``. An element in cancellation, whose float64 value moves by more than 4 ulp when every operand and every op has a
random rounding error (``noise.py``), is held to twice that movement instead, and a tensor all of whose elements are to the norm of
these bounds. Integers are bit-equal, but where such errors change them; NaN and infinities stand where ATen's do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from effc.compiler.capture import kernel_reference
from effc.compiler.capture.assemble import RegionCall
from effc.compiler.capture.importer.region import Region
from effc.compiler.capture.noise import moved
from effc.compiler.capture.partition import Group
from effc.compiler.capture.reference import evaluate
from effc.compiler.capture.source import op_name, source_of
from effc.compiler.ir.errors import VerificationError
from effc.compiler.ir.program import Program
from effc.runtime.derive import join

if TYPE_CHECKING:
    from effc.runtime.executable import Executable
    from effc.runtime.stepwise import Step

#: Random roundings that make a group: an element's movement in it is its largest.
_PROBES = 4
#: Groups, of which the response of an element is the median: a few at first; a violation is judged again by more, as an element in
#: cancellation may by chance move little in all of the first.
_GROUPS = (2, 9)


def checked(call: RegionCall, executable: Executable | None, name: str, group: Group, region: Region) -> RegionCall:
    """``call``, verified each time; VerificationError names the first output that is outside its bound, and the kernel at fault.

    The kernel is found by making the calls of ``executable`` one by one and repeating each by ``kernel_reference``; None: it is not.
    """

    def verified(symbols: Sequence[int], tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        written = {region.inputs.index(target) for target in group.mutations.values()}
        saved = [t.detach().clone() for t in tensors]

        def again(wide: bool = False, noise: torch.Generator | None = None) -> list[torch.Tensor]:
            inputs = [_rounded(t, noise) if noise else t.clone() if i in written else t for i, t in enumerate(saved)]
            return evaluate(group, region, symbols, inputs, wide, noise)

        def again_inputs() -> list[torch.Tensor]:
            """As the region was called: the same memory layouts, and what it wrote put back in a copy."""
            return [_like(t, saved[i]) if i in written else t.detach() for i, t in enumerate(tensors)]

        results = call(symbols, tensors)
        fresh = iter(results)
        ours = [
            tensors[region.inputs.index(group.mutations[n])] if n in group.mutations else next(fresh)
            for n in region.outputs
        ]
        ours, aten, true = [t.detach() for t in ours], [t.detach() for t in again()], again(wide=True)
        problem = _first_problem(
            ours, aten, true, lambda seed: again(wide=True, noise=torch.Generator().manual_seed(seed))
        )
        if problem:
            node, what = region.outputs[problem[0]], problem[1]
            raise VerificationError(
                f"{name}: the result of {op_name(node)} ({node.name}) at {source_of(node).describe()} is wrong: "
                f"{what}. {_culprit(executable, symbols, again_inputs())} "
                "Run this model in eager, and report it with what EFFC_DUMP=<folder> writes."
            )
        return results

    return verified


def _like(layout: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` in the strides of ``layout``."""
    return torch.empty_strided(layout.shape, layout.stride(), dtype=layout.dtype, device=layout.device).copy_(values)


def _culprit(executable: Executable | None, symbols: Sequence[int], tensors: Sequence[torch.Tensor]) -> str:
    """The first kernel whose results are not those of its spec on the memory that it read."""
    if executable is None:
        return "On a GPU effc does not look for the kernel at fault."
    watch = _Watch(executable.program, tensors)
    with contextlib.suppress(_Found):
        executable.run_stepwise(symbols, tensors, watch, validate=True)
    if watch.found:
        return watch.found
    skipped = f" ({watch.skipped} of them could not be repeated)" if watch.skipped else ""
    return (
        f"Each kernel computes what its spec says{skipped}: the graph was lowered to other kernels than it should be."
    )


class _Found(Exception):
    """The kernel at fault ran; the others need not."""


class _Watch:
    """Repeats every call; ``found`` describes the first that is wrong."""

    def __init__(self, program: Program, tensors: Sequence[torch.Tensor]) -> None:
        self.program, self.tensors = program, tensors
        self.found, self.skipped = "", 0
        self._before: list[torch.Tensor] | None = None

    def before(self, step: Step) -> None:
        operands = [self._memory(step, i) for i in range(len(step.kernel.operands))]
        self._before = None if any(m is None for m in operands) else [m.clone() for m in operands if m is not None]

    def _memory(self, step: Step, index: int) -> torch.Tensor | None:
        """An operand's memory; of a packed one its source's, None where that is a computed tensor."""
        if step.kernel.operands[index].role != "packed":
            return step.operand(index)
        kind, source = self.program.derived[step.call.pointers[index].index].source
        if kind == "joined":
            parts = self.program.joined[source].parts
            if any(p.source[0] != "input" for p in parts):
                return None
            return join([(p, self.tensors[p.source[1]].detach()) for p in parts]).flatten()
        if kind != "input":
            return None
        tensor = self.tensors[source].detach()
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        return tensor.as_strided((extent,), (1,))

    def after(self, step: Step) -> None:
        memory, specs = self._before, step.kernel
        plain = kernel_reference.evaluate(specs, memory, step.symbols) if memory is not None else None
        if memory is None or plain is None:
            self.skipped += 1
            return
        true = kernel_reference.evaluate(specs, memory, step.symbols, wide=True)
        assert true is not None

        def probe(seed: int) -> list[torch.Tensor]:
            noise = torch.Generator().manual_seed(seed)
            results = kernel_reference.evaluate(specs, memory, step.symbols, wide=True, noise=noise)
            assert results is not None
            return [results[i] for i in plain]

        problem = _first_problem([step.operand(i) for i in plain], [*plain.values()], [true[i] for i in plain], probe)
        if problem:
            place = f" at {step.call.location}" if step.call.location else ""
            self.found = f"The first kernel that is outside its bound is number {step.number}, {step.call.name}{place}: {problem[1]}."
            raise _Found


def _rounded(tensor: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Float64 of ``tensor``, each element moved by a random +-1 eps of its dtype; of integers a copy."""
    return moved(tensor, tensor.dtype, noise) if tensor.is_floating_point() else tensor.clone()


def _first_problem(
    ours: Sequence[torch.Tensor],
    aten: Sequence[torch.Tensor],
    true: Sequence[torch.Tensor],
    probe: Callable[[int], Sequence[torch.Tensor]],
) -> tuple[int, str] | None:
    """The first wrong tensor of ``ours`` and what is wrong with it; ``probe`` gives float64 results of moved inputs, by seed."""
    probes: list[Sequence[torch.Tensor]] = []
    found: tuple[int, str] | None = None
    for groups in _GROUPS:
        probes += [probe(seed) for seed in range(len(probes), groups * _PROBES)]
        problems = (
            _problem(*three, [p[i] for p in probes]) for i, three in enumerate(zip(ours, aten, true, strict=True))
        )
        found = next(((i, what) for i, what in enumerate(problems) if what), None)
        if found is None:
            break
    return found


def _problem(ours: torch.Tensor, aten: torch.Tensor, true: torch.Tensor, probes: list[torch.Tensor]) -> str | None:
    """What is wrong with ``ours``, or None."""
    if not ours.is_floating_point():
        differ = (ours != aten) & (ours != true)
        for p in probes:
            differ &= p == true
        wrong = int(differ.sum())
        return f"{wrong} of {ours.numel()} elements differ from ATen's" if wrong else None
    eps, smallest = torch.finfo(ours.dtype).eps, torch.finfo(ours.dtype).smallest_normal
    y, e, r = (t.double().reshape(-1) for t in (ours, aten, true))
    for what, mine, theirs in (("NaN", y.isnan(), e.isnan()), ("infinity", y.isinf(), e.isinf())):
        if not torch.equal(mine, theirs):
            return f"{what} in {int(mine.sum())} elements where ATen has it in {int(theirs.sum())}"
    changes = torch.stack([(p.reshape(-1) - r).abs() for p in probes])
    groups = changes.unflatten(0, (-1, _PROBES)).amax(1)
    response = torch.maximum(2 * groups.median(0).values, groups.amax(0))
    usable = y.isfinite() & r.isfinite() & response.isfinite()
    y, e, r, response = y[usable], e[usable], r[usable], response[usable]
    if not y.numel():
        return None
    norm = r.norm().clamp(min=smallest)
    l2, aten_l2 = float((y - r).norm() / norm), float((e - r).norm() / norm)
    bound = max(2 * aten_l2, 4 * eps, float(response.norm() / norm))
    if l2 > bound and float((y - r).norm()) > 4 * smallest:
        return f"relative L2 error {l2:.3g}, ATen's {aten_l2:.3g}, bound {bound:.3g}"
    ulp = torch.exp2(torch.floor(torch.log2(r.abs().clamp(min=smallest)))) * eps
    unit = torch.maximum(ulp, response / 8)
    errors, theirs = (y - r).abs() / unit, (e - r).abs() / unit
    allowed = max(2 * float(theirs.max()), 8.0)
    if float(errors.max()) > allowed:
        return f"element {int(errors.argmax())} is off by {float(errors.max()):.3g} ulp, bound {allowed:.3g}"
    return None
