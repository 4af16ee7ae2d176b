"""Inputs against what a program expects: refused when checking, copied into place when they come from ATen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from effc.compiler.ir.errors import VerificationError
from effc.compiler.ir.program import Program
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.sizes import Placement


def check_inputs(program: Program, expected: Sequence[Placement], tensors: Sequence[torch.Tensor]) -> None:
    """VerificationError naming the first input of another number, dtype, size, stride or device than the program's."""
    if len(tensors) != len(program.inputs):
        raise VerificationError(f"the program takes {len(program.inputs)} tensors, and got {len(tensors)}")
    for i, (wanted, placement, tensor) in enumerate(zip(program.inputs, expected, tensors, strict=True)):
        dtype = torch.int8 if tensor.dtype == torch.uint8 else tensor.dtype
        if dtype == TORCH_DTYPES[wanted.tensor.dtype] and tensor.device.type == "cpu" and placed_as(tensor, placement):
            continue
        raise VerificationError(
            f"input {i}{f' ({wanted.param})' if wanted.param else ''} is {tensor.dtype} {list(tensor.shape)} "
            f"with strides {list(tensor.stride())} on {tensor.device}; the program was compiled for {wanted.tensor.dtype} "
            f"{list(placement[0])} with strides {list(placement[1])} on the CPU: report this, it is an error of effc"
        )


def placed_as(tensor: torch.Tensor, placement: Placement) -> bool:
    """Whether every element lies where ``placement`` says; strides of dimensions of one element do not matter."""
    size, stride = placement
    if tensor.shape != size:
        return False
    strides = tensor.stride()
    return (
        strides == stride or 0 in size or all(n == 1 or a == b for n, a, b in zip(size, strides, stride, strict=True))
    )


@contextmanager
def conforming(
    expected: Mapping[int, Placement], tensors: Sequence[torch.Tensor], mutated: Sequence[int]
) -> Iterator[list[torch.Tensor]]:
    """The tensors, those copied that lie elsewhere than ``expected`` by number; what the program writes into a copy is copied back."""
    placed = list(tensors)
    for i, (size, stride) in expected.items():
        if not placed_as(placed[i], (size, stride)):
            copy = torch.empty_strided(size, stride, dtype=placed[i].dtype, device=placed[i].device)
            placed[i] = copy.copy_(placed[i].detach())
    yield placed
    for i in mutated:
        if placed[i] is not tensors[i]:
            tensors[i].copy_(placed[i])
