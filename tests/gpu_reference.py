"""What a GPU kernel should write, in float64: of kernels of many points what the first and the last of them write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from gpu_cases import attended
from torch import Tensor

from effc.compiler.capture.kernel_reference import evaluate
from effc.compiler.ir.expr import Expr, const, var
from effc.compiler.ir.spec import KernelSpec

#: Points of a window: the reference holds a few tensors of as many float64.
_MOST_POINTS = 1 << 22
#: What `gpu_interpreted.operands_of` fills memory with that is to be written; of floats NaN.
_UNWRITTEN = 77
_BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 4e-3}


def assert_as_float64(spec: KernelSpec, before: Sequence[Tensor], results: Mapping[int, Tensor]) -> None:
    """``results``: by operand, of a kernel without symbols on ``before``, which `gpu_interpreted.operands_of` made: codes not packed."""
    for expected in expectations(spec, before):
        for operand, want in expected.items():
            written = ~want.isnan() if results[operand].is_floating_point() else want != _UNWRITTEN
            assert written.any()
            assert_same(results[operand][written], want[written])


def expectations(spec: KernelSpec, before: Sequence[Tensor]) -> Iterator[dict[int, Tensor]]:
    """What is written, by operand, as it lies in memory; what is not known is as it was before."""
    if spec.template == "attention":
        yield {3: attended(spec, list(before))}
        return
    for window in _windows(spec):
        expected = evaluate(window, [t.clone() for t in before], (), wide=True)
        assert expected is not None, "the reference does not know an instruction"
        yield expected


def assert_same(got: Tensor, want: Tensor) -> None:
    """Integers exactly; of floats the relative L2 error is that of a few roundings."""
    if not got.is_floating_point():
        assert torch.equal(got, want.to(got.dtype))
        return
    error = float((got.double() - want.double()).norm() / want.double().norm())
    assert error < _BOUNDS[got.dtype], f"relative L2 error {error:.2g}"


def _windows(spec: KernelSpec) -> list[KernelSpec]:
    """``spec``, or the same at its first points and at its last; of stages those of some rows, dim 0 of each."""
    if all(_points(part) <= _MOST_POINTS for part in spec.stages or (spec,)):
        return [spec]
    if not spec.stages:
        return [_window(spec, _sides(spec), at_end) for at_end in (False, True)]
    rows = min(_MOST_POINTS * _size(part, 0) // _points(part) for part in spec.stages)
    return [
        replace(spec, stages=tuple(_window(part, {0: min(rows, _size(part, 0))}, at_end) for part in spec.stages))
        for at_end in (False, True)
    ]


def _sides(spec: KernelSpec) -> dict[int, int]:
    """Sizes of parallel dims with few enough points: the longest are cut."""
    sizes = {i: _size(spec, i) for i, d in enumerate(spec.dims) if d.kind == "parallel"}
    points = _points(spec)
    while points > _MOST_POINTS:
        longest = max(sizes, key=lambda i: sizes[i])
        half = -(-sizes[longest] // 2)
        points = points // sizes[longest] * half
        sizes[longest] = half
    return sizes


def _window(spec: KernelSpec, sizes: Mapping[int, int], at_end: bool) -> KernelSpec:
    moved: dict[str, Expr | int] = {
        f"d{i}": var(f"d{i}") + (_size(spec, i) - size if at_end else 0) for i, size in sizes.items()
    }
    dims = tuple(replace(d, size=const(sizes[i])) if i in sizes else d for i, d in enumerate(spec.dims))
    body = (
        replace(
            instr, attributes=tuple((k, v.substitute(moved) if isinstance(v, Expr) else v) for k, v in instr.attributes)
        )
        for instr in spec.body
    )
    return replace(spec, dims=dims, body=tuple(body))


def _size(spec: KernelSpec, dim: int) -> int:
    return spec.dims[dim].size.evaluate({})


def _points(spec: KernelSpec) -> int:
    total = 1
    for i in range(len(spec.dims)):
        total *= _size(spec, i)
    return total
