"""The same computation in float64: the reference that ``exactness`` compares with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


def clone_tree(tree: Any, dtype: torch.dtype | None = None) -> Any:
    """A copy of a tree of tensors that keeps strides, offsets, and which tensors share memory; floating ones in ``dtype``."""
    memory: dict[tuple[int, torch.dtype], Tensor] = {}

    def clone(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        storage = leaf.untyped_storage()
        key = (storage.data_ptr() or id(leaf), leaf.dtype)
        if key not in memory:
            memory[key] = convert(whole(leaf), dtype)
        flat = memory[key]
        out = torch.empty(0, dtype=flat.dtype).set_(
            flat.untyped_storage(), leaf.storage_offset(), leaf.shape, leaf.stride()
        )
        return out.requires_grad_(leaf.requires_grad)

    return pytree.tree_map(clone, tree)


def whole(t: Tensor) -> Tensor:
    """All memory under a tensor, as a vector."""
    storage = t.untyped_storage()
    return torch.empty(0, dtype=t.dtype).set_(storage, 0, (storage.nbytes() // t.element_size(),), (1,))


def convert(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy; floating numbers become ``dtype``, complex ones complex128 where there is one."""
    if dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.clone()
    return tensor.to(torch.complex128 if tensor.is_complex() else dtype, copy=True)


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
        args, kwargs = pytree.tree_map(widen_dtype, (args, kwargs or {}))
        return func(*args, **kwargs)


def widen_dtype(value: Any) -> Any:
    """A floating or complex dtype at double precision; anything else as it is."""
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


def reference(model: Callable[..., Any], inputs: Any) -> Run:
    """The float64 run."""
    wide = clone_tree(inputs, torch.float64)
    if not isinstance(model, nn.Module):
        with Float64Mode():
            return run(model, wide)
    module = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = convert(tensor.data, torch.float64)
    with Float64Mode():
        return run(module, wide, module)
