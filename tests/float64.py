"""The same computation in float64, and how far rounding moves it: the references that ``exactness`` compares with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from copies import COPIES
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

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


def clone_tree(tree: Any, dtype: torch.dtype | None = None, noise: torch.Generator | None = None) -> Any:
    """A copy of a tree of tensors that keeps strides, offsets, and which tensors share memory.

    ``dtype``: floating tensors become that type. ``noise``: they are also moved at random by up to 1 eps of the type
    they had.
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
        wide = wide * (1 + _noise(flat.shape, noise) * torch.finfo(flat.dtype).eps)
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


class RoundingNoise(TorchDispatchMode):
    """Moves every rounded float64 result by up to ``eps``, at random: Monte Carlo arithmetic (Parker, 1997)."""

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
        out = func(*args, **(kwargs or {}))
        if func.__name__.split(".")[0] not in _UNROUNDED:
            with _disable_current_modes():
                for leaf in pytree.tree_leaves(out):
                    if isinstance(leaf, Tensor) and leaf.dtype == torch.float64 and _is_writable(leaf):
                        leaf.mul_(1 + _noise(leaf.shape, self._generator) * self._eps)
        return out


def _is_writable(t: Tensor) -> bool:
    """Whether each element has a place of its own: an op may return an expanded tensor."""
    return t.layout == torch.strided and all(
        stride or size < 2 for size, stride in zip(t.shape, t.stride(), strict=True)
    )


def _noise(shape: Iterable[int], generator: torch.Generator) -> Tensor:
    """Uniform in [-1, 1], float64. (Were it -1 or 1, two roundings would cancel half of the time.)"""
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64) * 2 - 1


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


def reference(model: Callable[..., Any], inputs: Any) -> Run:
    """The float64 run."""
    function, wide, module = _widened(model, inputs, None)
    with Float64Mode():
        return run(function, wide, module)


def probe(model: Callable[..., Any], inputs: Any, seed: int, eps: float) -> Run:
    """A float64 run in which inputs and weights are rounded at their dtype's eps, and every result at ``eps``, at
    random.
    """
    generator = torch.Generator().manual_seed(seed)
    function, wide, module = _widened(model, inputs, generator)
    with Float64Mode(), RoundingNoise(eps, generator):
        return run(function, wide, module)


def _widened(
    model: Callable[..., Any], inputs: Any, noise: torch.Generator | None
) -> tuple[Callable[..., Any], Any, nn.Module | None]:
    """Float64 copies of the model and its inputs; the model's, once more, where it is a module."""
    wide = clone_tree(inputs, torch.float64, noise)
    if not isinstance(model, nn.Module):
        return model, wide, None
    module = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = _convert(tensor.data, torch.float64, noise)
    return module, wide, module
