"""Weights that a model looks up in a codebook (NF4 of QLoRA): packed as codes of 4 bits, and decoded in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effc.compiler.capture.recording import record
from effc.compiler.ir.errors import InputError
from effc.compiler.ir.formats import NF4
from effc.compiler.ir.program import Program


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(13)


class Linear(nn.Module):
    """``codebook[codes] * scale`` for each ``group`` of a weight ``[n, k]``; ``double``: the scales are codes too, in blocks of 4."""

    codes: Tensor
    scales: Tensor
    book: Tensor
    blocks: Tensor | None

    def __init__(
        self, n: int, k: int, group: int, *, dtype: torch.dtype = torch.uint8, bits: int = 4, double: bool = False
    ) -> None:
        super().__init__()
        book = torch.tensor(NF4.codebook) if bits == 4 else torch.randn(1 << bits)
        self.register_buffer("book", book)
        self.register_buffer("codes", torch.randint(0, 1 << bits, (n * k // group, group)).to(dtype))
        self.codes[0, :2] = torch.tensor([0, (1 << bits) - 1])
        blocks = n * k // group
        self.register_buffer(
            "scales", torch.randint(-127, 128, (blocks,)).to(torch.int8) if double else torch.rand(blocks) + 0.1
        )
        self.register_buffer("blocks", torch.rand(blocks // 4) * 0.01 if double else None)
        self.shape = (n, k)

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scales = self.scales
        if self.blocks is not None:
            scales = (scales.float().view(-1, 4) * self.blocks[:, None]).view(-1) + 1.5
        return (self.look_up() * scales[:, None]).view(self.shape).to(dtype)

    def look_up(self) -> Tensor:
        return self.book[self.codes.long()]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(x.dtype))


def run(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Program, list[str]]:
    compiled = torch.compile(function, backend="effc", options={"fallback": "error"})
    with record() as recording, torch.no_grad():
        result = compiled(*inputs)
    ((program, _),) = recording.programs
    return result, program, recording.notes


def decodes(program: Program) -> list[tuple[int, tuple[float, ...]]]:
    """Bits and codebook of what kernels decode."""
    return [(i["bits"], tuple(i["codebook"])) for k in program.kernels for i in k.body if i.op == "decode"]


def check(model: Linear, x: Tensor) -> Program:
    got, program, _ = run(model, x)
    with torch.no_grad():
        expected = x.double() @ model.weight().double().T
    bound = 1e-6 if x.dtype == torch.float32 else 4e-3
    assert (got.double() - expected).norm() <= bound * expected.norm()
    return program


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_nf4(rows: int, double: bool, dtype: torch.dtype) -> None:
    program = check(Linear(72, 96, 32, double=double), torch.randn(rows, 96).to(dtype))
    assert decodes(program) == [(4, NF4.codebook)]


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_other_codebooks(bits: int) -> None:
    model = Linear(70, 96, 32, dtype=torch.int8, bits=bits)
    program = check(model, torch.randn(3, 96))
    assert decodes(program) == [(bits, tuple(model.book.tolist()))]


@pytest.mark.parametrize(
    "look_up",
    [
        lambda m: m.book.index_select(0, m.codes.int().flatten()).view_as(m.codes),
        lambda m: m.book[m.codes.short().int()],
    ],
)
def test_other_ways_to_look_up(look_up: Callable[[Linear], Tensor]) -> None:
    model = Linear(70, 96, 32)
    model.look_up = lambda: look_up(model)  # type: ignore[method-assign]
    assert decodes(check(model, torch.randn(3, 96))) == [(4, NF4.codebook)]


def test_two_layers_share_a_codebook() -> None:
    model = nn.Sequential(Linear(64, 96, 32), nn.ReLU(), Linear(96, 64, 32))
    model[2].book = model[0].book
    x = torch.randn(3, 96)
    got, program, _ = run(model, x)
    assert len(decodes(program)) == 2
    torch.testing.assert_close(got, model(x))


def test_another_codebook_is_noticed() -> None:
    model, x = Linear(64, 96, 32), torch.randn(3, 96)
    compiled = torch.compile(model, backend="effc")
    with torch.no_grad():
        compiled(x)
        model.scales[3] = 2.5
        torch.testing.assert_close(compiled(x), model(x))
        model.book[5] = 0.0
        with pytest.raises(IndexError, match=r"book is another codebook than when .*compile again"):
            compiled(x)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(model, backend="effc")(x), model(x))


def test_a_code_outside_the_codebook_is_noticed() -> None:
    model, x = Linear(64, 96, 32), torch.randn(3, 96)
    compiled = torch.compile(model, backend="effc")
    with torch.no_grad():
        compiled(x)
        model.codes[4, 5] = 16
        with pytest.raises((InputError, IndexError), match=r"codes from 0 to 16.*compile again|out of bounds"):
            compiled(x)


# -- where the weight is made in floats -------------------------------------------------------------------------------
def test_a_codebook_that_is_also_added() -> None:
    model, x = Linear(64, 96, 32), torch.randn(3, 96)

    def function(x: Tensor) -> Tensor:
        result: Tensor = model(x).sum() + model.book
        return result

    got, program, _ = run(function, x)
    assert decodes(program) == []
    torch.testing.assert_close(got, function(x))


def test_a_codebook_of_bytes() -> None:
    model = Linear(64, 96, 32, bits=6)
    assert decodes(check(model, torch.randn(3, 96))) == []


def test_positions_that_are_turned_round() -> None:
    """``15 - code`` is no code."""
    model = Linear(64, 96, 32)
    model.look_up = lambda: model.book[15 - model.codes.long()]  # type: ignore[method-assign]
    assert decodes(check(model, torch.randn(3, 96))) == []


def test_a_channel_of_sixteen_is_no_codebook() -> None:
    """Parameters that are not looked up in belong to no key of compiled code."""
    norm = nn.BatchNorm1d(16)
    model = nn.Sequential(nn.Linear(8, 16), norm).eval()
    programs = []
    for _ in range(2):
        torch._dynamo.reset()
        nn.init.normal_(norm.weight)
        _, program, _ = run(model, torch.randn(3, 8))
        programs.append(program)
    assert programs[0] == programs[1]
