"""Comparison by the project's definition of exact: errors are taken against float64 and held against eager's own.

Three runs on the same inputs: a float64 one (the reference), eager, and the compiled one. For each floating output,
and each input or buffer that the model wrote into:

- **relative L2**: ``||y - r|| / ||r|| <= max(2x eager's, 4 eps)``, eps that of the output's dtype. Twice the relative L2
  of the *response* bounds it too where eager's own error is luck (fewer than 64 elements carry the response) or says
  nothing (a float64 output of eager's is the reference itself), and where eps says little (the model computes in a
  coarser dtype too).
- **elementwise**, in ulp of the reference, outside cancellation: worst ``<= max(2x eager's worst, 8 ulp)``.
- **in cancellation**, where the *response* of an element is above 4 ulp, the same holds with a quarter of its response
  for the ulp.

The *response* of an element is how far rounding moves it, whatever the order of operations: the largest change over
eight float64 runs in which inputs, weights and the result of every op are moved at random by up to 1 eps of the dtype
that they have in eager, and sums by the rounding of their partial sums (Monte Carlo arithmetic: Parker, 1997; the
model of sums: ``compiler/capture/noise.py``).

Integers and bools are bit-equal to eager; NaN and infinity stand where eager's do; a zero of the reference has
eager's sign. Shapes and dtypes are eager's, and strides too where ``strides=True``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from float64 import Run, reference, run
from rounding import probe
from torch import Tensor, nn
from torch.utils import _pytree as pytree

#: Random changes of the inputs for the response: with 8, an element escapes with a third of its typical change in 1
#: of 40,000.
_PROBES = 8
#: Fewer are taken where they suffice: each adds to the response, which can only widen the bounds, up to those that eager's errors widen.
#: (Where a later one overflows, its element has no response by all 8; the finite ones before it have shown enough.)
_FEWER = (0, 1, 3, _PROBES)
#: A violation is judged again by as many times 8 runs, of which the response is the median.
_AGAIN = 9
#: Where fewer elements than this carry the response, it is a second yardstick for the relative L2.
_FEW = 64


class Inexact(AssertionError):
    """A compiled result outside the bounds; the text lists every violation."""


@dataclass(frozen=True)
class Leaf:
    """Errors of one tensor: relative L2 and worst ulp outside cancellation, ours and eager's."""

    place: str
    ours_l2: float = 0.0
    eager_l2: float = 0.0
    ours_ulp: float = 0.0
    eager_ulp: float = 0.0


@dataclass
class Comparison:
    leaves: list[Leaf] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def require(self, context: str = "") -> None:
        """Raise ``Inexact`` where something is out of bounds."""
        if self.problems:
            raise Inexact("\n  ".join([context or "not exact:", *self.problems]))

    def worst_ratio(self) -> float:
        """Largest ratio of our relative L2 error to eager's (1 where both are below eps-sized noise)."""
        return max((leaf.ours_l2 / leaf.eager_l2 for leaf in self.leaves if leaf.eager_l2 > 0), default=1.0)


def assert_exact(
    model: Callable[..., Any], inputs: Any, compiled: Callable[..., Any], strides: bool = False, context: str = ""
) -> Comparison:
    """Run ``model`` in float64 and eagerly, and ``compiled``, on copies of ``inputs`` (a tuple); raise ``Inexact`` if
    it is not exact.

    ``model``: a module or a function; ``compiled`` shares its weights. Buffers and written inputs are compared as
    outputs are.
    """
    comparison = compare(model, inputs, compiled, strides)
    comparison.require(context)
    return comparison


def compare(model: Callable[..., Any], inputs: Any, compiled: Callable[..., Any], strides: bool = False) -> Comparison:
    """As ``assert_exact``, but the violations are returned."""
    state = model if isinstance(model, nn.Module) else None
    return judge(model, inputs, run(compiled, inputs, state), run(model, inputs, state), strides)


def judge(
    model: Callable[..., Any], inputs: Any, ours: Run, eager: Run, strides: bool = False, zero_signs: bool = True
) -> Comparison:
    """Compare two runs made on ``inputs``; ``model`` runs in float64 unless shapes or dtypes already differ."""
    result = Comparison()
    ours_leaves, eager_leaves = ours.tensors(), eager.tensors()
    if ours_leaves.keys() != eager_leaves.keys():
        result.problems.append(f"structure: {sorted(ours_leaves)} where eager has {sorted(eager_leaves)}")
        return result
    for place in eager_leaves:
        result.problems += _metadata(place, ours_leaves[place], eager_leaves[place], strides)
    result.problems += _aliasing(ours, eager)
    if result.problems:
        return result
    true = reference(model, inputs).tensors()
    probes: list[dict[str, Any]] = []
    coarsest = 0.0
    for count in _FEWER:
        for seed in range(len(probes), count):
            moved, eps = probe(model, inputs, seed)
            probes.append(moved)
            coarsest = max(coarsest, eps)
        result = _judged(ours_leaves, eager_leaves, true, probes, _Mode(zero_signs))
        if not result.problems:
            return result
    mode = _Mode(zero_signs, coarsest)
    result = _judged(ours_leaves, eager_leaves, true, probes, mode)
    if result.problems:
        more = [probe(model, inputs, seed)[0] for seed in range(_PROBES, _AGAIN * _PROBES)]
        result = _judged(ours_leaves, eager_leaves, true, [*probes, *more], mode)
    return result


def _judged(
    ours: dict[str, Any], eager: dict[str, Any], true: dict[str, Any], probes: list[dict[str, Any]], mode: _Mode
) -> Comparison:
    result = Comparison()
    for place, expected in eager.items():
        if isinstance(expected, Tensor):
            _values(result, place, ours[place], expected, true[place], [p[place] for p in probes], mode)
        elif ours[place] != expected:
            result.problems.append(f"{place}: {ours[place]!r}, eager {expected!r}")
    return result


@dataclass(frozen=True)
class _Mode:
    """``zero_signs``: compare them. ``coarsest``: the largest eps of a dtype that the model computes in; None: each element is held to
    8 units, and the relative L2 to eager's, so that more probes could only widen the bounds.
    """

    zero_signs: bool
    coarsest: float | None = None


def _metadata(place: str, ours: Any, eager: Any, strides: bool) -> list[str]:
    if not isinstance(eager, Tensor):
        return []
    if not isinstance(ours, Tensor):
        return [f"{place}: {type(ours).__name__}, eager a tensor"]
    problems = [
        f"{place}: {what} {a}, eager {b}"
        for what, a, b in (("dtype", ours.dtype, eager.dtype), ("shape", ours.shape, eager.shape))
        if a != b
    ]
    if strides and not problems and eager.numel():
        a, b = ([s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (ours, eager))
        if a != b:
            problems.append(f"{place}: strides {ours.stride()}, eager {eager.stride()}")
    return problems


def _aliasing(ours: Run, eager: Run) -> list[str]:
    """Outputs share memory with inputs, and with each other, exactly where eager's do."""

    def groups(r: Run) -> list[int]:
        leaves = [leaf for leaf in pytree.tree_leaves((r.inputs, r.outputs)) if isinstance(leaf, Tensor)]
        pointers = [leaf.untyped_storage().data_ptr() or -1 - i for i, leaf in enumerate(leaves)]
        return [pointers.index(p) for p in pointers]

    a, b = groups(ours), groups(eager)
    return [] if a == b else [f"aliasing among inputs and outputs: {a}, eager {b}"]


def _values(
    result: Comparison,
    place: str,
    ours: Tensor,
    eager: Tensor,
    true: Tensor,
    probes: list[Tensor],
    mode: _Mode,
) -> None:
    if not (eager.is_floating_point() or eager.is_complex()):
        if not torch.equal(ours, eager):
            wrong = (ours != eager).nonzero()
            first = tuple(wrong[0].tolist())
            result.problems.append(
                f"{place}: {len(wrong)} of {eager.numel()} integers differ, first at {first}: "
                f"{ours[first]}, eager {eager[first]}"
            )
        return
    if eager.is_complex():
        ours, eager, true = (torch.view_as_real(t.resolve_conj()) for t in (ours, eager, true.to(torch.complex128)))
        probes = [torch.view_as_real(p.resolve_conj().to(torch.complex128)) for p in probes]
    eps, smallest = torch.finfo(eager.dtype).eps, torch.finfo(eager.dtype).smallest_normal
    a, b, r = (t.detach().double().reshape(-1) for t in (ours, eager, true))
    special = _special(place, a, b) + (_zeros(place, a, b, r) if mode.zero_signs else [])
    result.problems += special
    usable = b.isfinite() & a.isfinite() & r.isfinite()
    if special or not bool(usable.any()):
        return
    response = _response(r, probes)[usable]
    a, b, r = a[usable], b[usable], r[usable]
    ulp = torch.exp2(torch.floor(torch.log2(r.abs().clamp(min=smallest)))) * eps
    norm = r.norm().clamp(min=smallest)
    l2, eager_l2 = (float((x - r).norm() / norm) for x in (a, b))
    bound = max(2 * eager_l2, 4 * eps)
    if mode.coarsest is not None and (
        _carriers(response, r) < _FEW or eager.dtype == torch.float64 or mode.coarsest > eps
    ):
        bound = max(bound, float(2 * response.norm() / norm))
    if l2 > bound and float((a - r).norm()) > 4 * smallest:
        result.problems.append(f"{place}: relative L2 {l2:.3g}, eager {eager_l2:.3g}, bound {bound:.3g}")
    unit = torch.maximum(ulp, response / 4)
    worst = _worst(result, place, (a - r).abs() / unit, (b - r).abs() / unit, mode)
    result.leaves.append(Leaf(place, l2, eager_l2, *worst))


def _response(true: Tensor, probes: list[Tensor]) -> Tensor:
    """By element, the largest change in 8 probes; of more the median of eights; without any 0."""
    if not probes:
        return torch.zeros_like(true)
    changes = torch.stack([(p.detach().double().reshape(-1) - true).abs() for p in probes])
    eights = changes.unflatten(0, (-1, min(_PROBES, len(probes))))
    response: Tensor = eights.amax(1).median(0).values.nan_to_num(posinf=0.0)
    return response


def _carriers(response: Tensor, true: Tensor) -> float:
    """How many elements the L2 norm of ``response`` comes from (participation ratio: n where n are equal and the rest 0).

    Elements of one value are copies of one computation (an expanded input, an index taken twice): they have one error,
    not many that average out, and count as one.
    """
    _, copies = torch.unique(true, return_inverse=True)
    energy = torch.zeros(int(copies.amax()) + 1, dtype=response.dtype).index_add(0, copies, response.square())
    shares = energy / energy.amax().clamp(min=torch.finfo(response.dtype).tiny)
    return float(shares.sum().square() / shares.square().sum()) if bool(shares.any()) else 0.0


def _worst(result: Comparison, place: str, ours: Tensor, eager: Tensor, mode: _Mode) -> tuple[float, float]:
    """The worst element's error of both, in ulp or quarters of a response; a violation is added to ``result``."""
    at = int(ours.argmax())
    worst, eager_worst = float(ours[at]), float(eager.max())
    if worst > (8.0 if mode.coarsest is None else max(2 * eager_worst, 8.0)):
        result.problems.append(
            f"{place}: element {at} is off by {worst:.4g} ulp (or quarters of its response), eager's worst is {eager_worst:.4g}"
        )
    return worst, eager_worst


def _special(place: str, a: Tensor, b: Tensor) -> list[str]:
    """NaN and infinities against eager's."""
    problems = []
    for what, x, y in (
        ("NaN", a.isnan(), b.isnan()),
        ("+inf", a == torch.inf, b == torch.inf),
        ("-inf", a == -torch.inf, b == -torch.inf),
    ):
        if not torch.equal(x, y):
            at = int((x != y).nonzero()[0, 0])
            problems.append(
                f"{place}: {what} differs in {int((x != y).sum())} elements; element {at} is {a[at]}, eager {b[at]}"
            )
    return problems


def _zeros(place: str, a: Tensor, b: Tensor, r: Tensor) -> list[str]:
    """Signs of zeros against eager's, where the reference is zero too."""
    problems = []
    zero = (a == 0) & (b == 0) & (r == 0)
    signs = zero & (a.signbit() != b.signbit())
    if bool(signs.any()):
        at = int(signs.nonzero()[0, 0])
        problems.append(
            f"{place}: sign of zero differs in {int(signs.sum())} elements; element {at} is {a[at]}, eager {b[at]}"
        )
    return problems
