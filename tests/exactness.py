"""Comparison by the project's definition of exact: errors are taken against float64 and held against eager's own.

Three runs on the same inputs: a float64 one (the reference), eager, and the compiled one. For each floating output,
and each input or buffer that the model wrote into:

- **relative L2**: ``||y - r|| / ||r|| <= max(2x eager's, 4 eps)``, eps that of the output's dtype. For fewer than 64
  elements eager's own error is luck, so the bound is at least twice the relative L2 of the *response* (below).
- **elementwise**, in ulp of the reference, outside cancellation: worst ``<= max(2x eager's worst, 8 ulp)``.
- **in cancellation** an element is held to its response instead: worst ``|y - r| / response <= max(2x eager's worst,
  16)``.

The *response* of an element is how far the float64 result moves when nothing but the inputs and weights are rounded:
the largest change over eight runs with every input and weight moved by a random +-1 eps of its dtype (a
backward-error yardstick: Higham, Accuracy and Stability of Numerical Algorithms, ch. 1). An element whose response is
above 4 ulp *is in cancellation*.

Integers and bools are bit-equal to eager; NaN and infinity stand where eager's do; a zero of the reference has
eager's sign. Shapes and dtypes are eager's, and strides too where ``strides=True``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

#: Random changes of the inputs for the response: with 8, an element escapes with a third of its typical change in 1
#: of 40,000.
_PROBES = 8
#: Outputs with fewer elements than this get the response as a second yardstick for the relative L2.
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


def clone_tree(tree: Any, dtype: torch.dtype | None = None, noise: torch.Generator | None = None) -> Any:
    """A copy of a tree of tensors that keeps strides, offsets, and which tensors share memory.

    ``dtype``: floating tensors become that type. ``noise``: they are also moved by a random +-1 eps of the type they
    had.
    """
    memory: dict[tuple[int, torch.dtype], Tensor] = {}

    def clone(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        storage = leaf.untyped_storage()
        key = (storage.data_ptr() or id(leaf), leaf.dtype)
        if key not in memory:
            flat = torch.empty(0, dtype=leaf.dtype).set_(storage, 0, (storage.nbytes() // leaf.element_size(),), (1,))
            memory[key] = _convert(flat.detach(), dtype, noise)
        flat = memory[key]
        out = torch.empty(0, dtype=flat.dtype).set_(
            flat.untyped_storage(), leaf.storage_offset(), leaf.shape, leaf.stride()
        )
        return out.requires_grad_(leaf.requires_grad)

    return pytree.tree_map(clone, tree)


def _convert(flat: Tensor, dtype: torch.dtype | None, noise: torch.Generator | None) -> Tensor:
    inexact = flat.is_floating_point() or flat.is_complex()
    if not inexact or dtype is None:
        return flat.clone()
    wide = flat.to(torch.complex128 if flat.is_complex() else dtype, copy=True)
    if noise is not None:
        sign = torch.randint(0, 2, flat.shape, generator=noise).double() * 2 - 1
        wide = wide * (1 + sign * torch.finfo(flat.dtype).eps)
    return wide


class Float64Mode(TorchFunctionMode):
    """Within it, whatever asks for a floating dtype (``x.float()``, ``dtype=torch.bfloat16``, a factory's default)
    gets float64.
    """

    _CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)

    def __enter__(self) -> Float64Mode:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._default)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in self._CASTS:
            func = Tensor.double
        args, kwargs = pytree.tree_map(_widen_dtype, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widen_dtype(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else torch.complex128 if value.is_complex else value
    return value


@dataclass(frozen=True)
class Run:
    """What a call returned, and its inputs and the module's buffers as it left them."""

    outputs: Any
    inputs: Any
    buffers: dict[str, Tensor]

    def tensors(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for what, tree in (("output", self.outputs), ("input", self.inputs), ("buffer", self.buffers)):
            for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
                found[what + pytree.keystr(path)] = leaf
        return found


def run(function: Callable[..., Any], inputs: Any, state: nn.Module | None = None) -> Run:
    """Call on a copy of ``inputs``; ``state``'s buffers are recorded and put back."""
    inputs = clone_tree(inputs)
    before = {} if state is None else {k: b.clone() for k, b in state.named_buffers()}
    outputs = function(*inputs)
    after: dict[str, Tensor] = {}
    if state is not None:
        with torch.no_grad():
            for name, buffer in state.named_buffers():
                after[name] = buffer.clone()
                buffer.copy_(before[name])
    return Run(outputs, inputs, after)


def reference(model: Callable[..., Any], inputs: Any, probe: int | None = None) -> Run:
    """The float64 run; with ``probe``, of inputs and weights moved by a random +-1 eps."""
    noise = None if probe is None else torch.Generator().manual_seed(probe)
    wide = clone_tree(inputs, torch.float64, noise)
    module = None
    if isinstance(model, nn.Module):
        module = copy.deepcopy(model)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.data = _convert(tensor.data, torch.float64, noise)
    with Float64Mode():
        return run(module or model, wide, module)


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


def judge(model: Callable[..., Any], inputs: Any, ours: Run, eager: Run, strides: bool = False) -> Comparison:
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
    probes = [reference(model, inputs, probe).tensors() for probe in range(_PROBES)]
    for place, expected in eager_leaves.items():
        if isinstance(expected, Tensor):
            _values(result, place, ours_leaves[place], expected, true[place], [p[place] for p in probes])
        elif ours_leaves[place] != expected:
            result.problems.append(f"{place}: {ours_leaves[place]!r}, eager {expected!r}")
    return result


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


def _values(result: Comparison, place: str, ours: Tensor, eager: Tensor, true: Tensor, probes: list[Tensor]) -> None:
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
    result.problems += _special(place, a, b, r)
    usable = b.isfinite() & a.isfinite() & r.isfinite()
    if result.problems or not bool(usable.any()):
        return
    response = torch.stack([(p.detach().double().reshape(-1) - r).abs() for p in probes]).amax(0)
    response = response.nan_to_num(posinf=0.0)[usable]
    a, b, r = a[usable], b[usable], r[usable]
    ulp = torch.exp2(torch.floor(torch.log2(r.abs().clamp(min=smallest)))) * eps
    norm = r.norm().clamp(min=smallest)
    l2, eager_l2 = (float((x - r).norm() / norm) for x in (a, b))
    bound = max(2 * eager_l2, 4 * eps, float(2 * response.norm() / norm) if r.numel() < _FEW else 0.0)
    if l2 > bound and float((a - r).norm()) > 4 * smallest:
        result.problems.append(f"{place}: relative L2 {l2:.3g}, eager {eager_l2:.3g}, bound {bound:.3g}")
    cancelled = response > 4 * ulp
    worst = _worst(result, place, (a - r).abs() / ulp, (b - r).abs() / ulp, ~cancelled, 8.0, "ulp")
    unit = torch.maximum(response, ulp)
    _worst(
        result, place, (a - r).abs() / unit, (b - r).abs() / unit, cancelled, 16.0, "of its response, in cancellation,"
    )
    result.leaves.append(Leaf(place, l2, eager_l2, *worst))


def _worst(
    result: Comparison, place: str, ours: Tensor, eager: Tensor, where: Tensor, floor: float, unit: str
) -> tuple[float, float]:
    """The worst of both over ``where``; a violation is added to ``result``."""
    if not bool(where.any()):
        return 0.0, 0.0
    eager_worst = float(eager[where].max())
    masked = torch.where(where, ours, 0.0)
    at = int(masked.argmax())
    if float(masked[at]) > max(2 * eager_worst, floor):
        result.problems.append(
            f"{place}: element {at} is off by {float(masked[at]):.4g} {unit} eager's worst is {eager_worst:.4g}"
        )
    return float(masked[at]), eager_worst


def _special(place: str, a: Tensor, b: Tensor, r: Tensor) -> list[str]:
    """NaN, infinities and signed zeros against eager's."""
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
    zero = (a == 0) & (b == 0) & (r == 0)
    signs = zero & (a.signbit() != b.signbit())
    if bool(signs.any()):
        at = int(signs.nonzero()[0, 0])
        problems.append(
            f"{place}: sign of zero differs in {int(signs.sum())} elements; element {at} is {a[at]}, eager {b[at]}"
        )
    return problems
