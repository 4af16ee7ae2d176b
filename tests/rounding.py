"""How far rounding moves a result: eager's ops repeated in float64, each result moved by the eps of its own dtype."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from copies import COPIES
from float64 import Float64Mode, Run, clone_tree, convert, whole, widen_dtype
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from effc.compiler.capture.noise import summed

#: ATen ops that do not round, besides those that only move data.
_UNROUNDED = COPIES | {
    *(
        "abs",
        "neg",
        "relu",
        "clamp",
        "clamp_min",
        "clamp_max",
        "maximum",
        "minimum",
        "max",
        "min",
        "amax",
        "amin",
        "sort",
    ),
    *("topk", "floor", "ceil", "round", "trunc", "sign", "sgn", "max_pool2d_with_indices", "abs_", "neg_", "clamp_"),
}

_aten = torch.ops.aten
#: Kernels of several roundings each; taken apart, so that those inside count.
_DECOMPOSED = get_decompositions(
    [
        *(
            _aten.native_layer_norm,
            _aten.native_group_norm,
            _aten.native_batch_norm,
            _aten._softmax,
            _aten._log_softmax,
        ),
        *(_aten.addcmul, _aten.addcdiv, _aten.addmm, _aten.baddbmm, _aten.lerp, _aten.std, _aten.var_mean),
        *(_aten.gelu, _aten.silu, _aten.mish, _aten.softplus, _aten.log_sigmoid_forward, _aten.elu, _aten.hardswish),
        *(_aten.sigmoid, _aten.logsumexp, _aten.mean),
    ]
)

#: torch's decomposition leaves a variance whole, so that the rounding of its mean would not count.
_VARIANCES = (_aten.var.correction, torch.ops.prims.var.default)


def _variance(x: Tensor, dims: Any = None, correction: float | None = 1, keepdim: bool = False, **_: Any) -> Tensor:
    over = list(range(x.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    squares = (x - x.mean(over, keepdim=True)).square()
    count = x.numel() / max(squares.mean(over).numel(), 1)
    return squares.sum(over, keepdim=keepdim) / max(count - (1 if correction is None else correction), 0)


#: Copies that round where the type they write is the coarser one, and the argument that they read.
_CASTS = {"_to_copy": 0, "copy_": 1}


#: 16-bit operands are summed in float32.
_FLOAT32 = torch.finfo(torch.float32).eps


class RoundingNoise(TorchDispatchMode):
    """Moves every rounded float64 result by up to ``eps``, and sums as their terms' order may, at random: Monte Carlo
    arithmetic (Parker, 1997).
    """

    def __init__(self, eps: float, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._eps, self._generator = eps, generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _VARIANCES:
            with self:
                return _variance(*args, **(kwargs or {}))
        if func in _DECOMPOSED:
            with self:
                return _DECOMPOSED[func](*args, **(kwargs or {}))
        out = summed(_name(func), func, args, kwargs or {}, min(self._eps, _FLOAT32), self._generator)
        if _name(func) not in _UNROUNDED:
            with _disable_current_modes():
                for leaf in _tensors(out):
                    _move(leaf, self._eps, self._generator)
        return out


class Companions(TorchDispatchMode):
    """Repeats every op on float64 companions of its tensors, where results are moved as the op's own are rounded.

    A companion belongs to memory, not to a tensor: so views, writes, and tensors saved for gradients find it. What no
    op made (inputs, weights) is moved by up to 1 eps of its dtype when it is first read.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator
        #: By address of the storage, which is kept so that no other takes its address.
        self._memory: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}
        #: The largest eps among the dtypes seen.
        self.coarsest = 0.0

    def of(self, leaf: Any) -> Any:
        """The companion of a tensor; anything else as it is."""
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.untyped_storage()._cdata not in self._memory:
            _move(self._add(leaf), self._eps(leaf), self._generator)
        return self._view(leaf)

    def _add(self, leaf: Tensor) -> Tensor:
        """A companion for new memory, with the same numbers; all of it, as a vector."""
        storage, flat = leaf.untyped_storage(), convert(whole(leaf), torch.float64)
        self._memory[storage._cdata] = storage, flat
        return flat

    def _view(self, leaf: Tensor) -> Tensor:
        flat = self._memory[leaf.untyped_storage()._cdata][1]
        view = torch.empty(0, dtype=widen_dtype(leaf.dtype)).set_(
            flat.untyped_storage(), leaf.storage_offset(), leaf.shape, leaf.stride()
        )
        view = view.conj() if leaf.is_conj() else view
        return torch._neg_view(view) if leaf.is_neg() else view

    def _eps(self, leaf: Any) -> float:
        """Of a tensor's dtype; 0 for integers and numbers."""
        inexact = isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        eps = torch.finfo(leaf.dtype).eps if inexact else 0.0
        self.coarsest = max(self.coarsest, eps)
        return eps

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operands = _tensors((args, kwargs))
        wide_args, wide_kwargs = pytree.tree_map(lambda leaf: widen_dtype(self.of(leaf)), (args, kwargs))
        out = func(*args, **kwargs)
        results = _tensors(out)
        eps = max(map(self._eps, results or operands), default=0.0)
        if not operands:  # a factory: its numbers are no one's rounding
            for made in results:
                self._add(made)
            return out
        with Float64Mode(), RoundingNoise(eps, self._generator):  # the former: integers times 0.5 are float64 too
            wide = func(*wide_args, **wide_kwargs)
        for made, numbers in zip(results, _tensors(wide), strict=True):
            if made.untyped_storage()._cdata not in self._memory:  # else a view or a write: the companion has it
                self._add(made)
                _assign(self._view(made), numbers)
        source = _CASTS.get(_name(func))
        if source is not None and eps > self._eps(args[source]):
            _move(self._view(results[0]), eps, self._generator)
        return out


def _name(func: Any) -> str:
    return str(func.__name__.split(".")[0])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _move(wide: Tensor, eps: float, generator: torch.Generator) -> None:
    """Multiply each number, in place, by ``1 + u eps``, u uniform in [-1, 1]. (Were u -1 or 1, two roundings would cancel
    half of the time.) Integers stay.
    """
    if eps and wide.dtype in (torch.float64, torch.complex128) and _is_writable(wide):
        u = torch.rand(wide.shape, generator=generator, dtype=torch.float64) * 2 - 1
        wide.mul_(1 + u * eps)


def _is_writable(t: Tensor) -> bool:
    """Whether each element has a place of its own: an op may return an expanded tensor."""
    return t.layout == torch.strided and all(
        stride or size < 2 for size, stride in zip(t.shape, t.stride(), strict=True)
    )


def _assign(target: Tensor, numbers: Tensor) -> None:
    """Copy, once for elements of ``target`` that share a place."""
    for dim, (size, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if size > 1 and not stride:
            target, numbers = target.narrow(dim, 0, 1), numbers.narrow(dim, 0, 1)
    target.copy_(numbers)


@contextlib.contextmanager
def _plain_lstm() -> Iterator[None]:
    """An LSTM's layer as ops of ATen's; oneDNN's is one op, which has no float64 kernel."""
    (enabled, *_) = torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(enabled)


def probe(model: Callable[..., Any], inputs: Any, seed: int) -> tuple[dict[str, Any], float]:
    """A float64 run in which inputs, weights and the result of every op are moved at random by up to the eps of the
    dtype that they have in eager; and the largest such eps.
    """
    inputs = clone_tree(inputs)
    model = copy.deepcopy(model) if isinstance(model, nn.Module) else model
    with _plain_lstm(), Companions(torch.Generator().manual_seed(seed)) as companions:
        outputs = model(*inputs)
    buffers = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
    moved = {place: companions.of(leaf) for place, leaf in Run(outputs, inputs, buffers).tensors().items()}
    return moved, companions.coarsest
