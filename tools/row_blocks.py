"""Two products in one kernel against one kernel each, over rows, widths and ranks: python tools/row_blocks.py

``relu(x @ a.T) @ b.T + q`` of ``x`` ``[rows][width]``, ``a`` ``[rank][width]`` and ``b`` ``[width][rank]``: low-rank factors of a square
weight. Microseconds, each the least of some rounds in turn in one process; ``chosen``: whether the compiler makes one kernel of them.
``--columns``: the width of the result where it is another; pointwise convolutions of MobileNetV2 without a depthwise one between are
``--rows 12544 --widths 32 --ratios 0.5 --columns 96`` and ``--rows 784 --widths 192 --ratios 0.3333 --columns 384``.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from sparse_kernels import least

from effc.compiler.codegen.cpu.block.choice import Block, block_of
from effc.compiler.codegen.cpu.emit import emit, kernel_name
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.schedules import Packing, packing
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import as_expr, const
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.compiler.pipeline.blocks import saved
from effc.runtime import elf
from effc.runtime.derive import derive
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.threads import threads as thread_pool

#: Operands of the pair: rows, both weights, a bias, the result, and the intermediate.
_X, _FIRST, _SECOND, _BIAS, _RESULT, _BETWEEN = range(6)
#: Of each kernel alone, those of the pair that it touches.
_OPERANDS = ((_X, _FIRST, _BETWEEN), (_BETWEEN, _SECOND, _BIAS, _RESULT))

#: A call that does nothing (``free`` of no memory): beside the one kernel, as the other way makes two calls from Python.
_NOTHING = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(("free", ctypes.CDLL(None)))


@dataclass(frozen=True)
class Pair:
    rows: int
    width: int
    rank: int
    columns: int
    dtype: str

    def spec(self) -> KernelSpec:
        """The block; its stages are the kernels alone but for their operands."""
        m, k, r, n = self.rows, self.width, self.rank, self.columns
        sizes, biased = (m * k, r * k, n * r, n, m * n, m * r), ("read", "read", "read", "read", "write", "scratch")
        operands = tuple(
            Operand("f32" if i == _BIAS else self.dtype, role, const(size))
            for i, (size, role) in enumerate(zip(sizes, biased, strict=True))
        )
        relu = (Instr("constant", (), "f32", (("value", 0.0),)), "arith.maximumf")
        added = (Instr("load", (), "f32", (("address", as_expr("d1")), ("operand", _BIAS))), "arith.addf")
        stages = (
            self._stage(m, k, r, (_X, _FIRST, _BETWEEN), relu),
            self._stage(m, r, n, (_BETWEEN, _SECOND, _RESULT), added),
        )
        return KernelSpec(
            "block", (), operands, (),
            stages=tuple(KernelSpec("contraction", dims, operands, body) for dims, body in stages),
        )  # fmt: skip

    def _stage(
        self, m: int, k: int, n: int, operands: tuple[int, int, int], after: tuple[Instr, str]
    ) -> tuple[tuple[Dim, ...], tuple[Instr, ...]]:
        """``after``: a value, and the op that combines the sum with it."""
        left, right, out = operands
        body: list[Instr] = []
        factors = []
        for operand, address in ((left, f"{k}*d0 + d2"), (right, f"{k}*d1 + d2")):
            body.append(Instr("load", (), self.dtype, (("address", as_expr(address)), ("operand", operand))))
            if self.dtype != "f32":
                body.append(Instr("arith.extf", (len(body) - 1,), "f32"))
            factors.append(len(body) - 1)
        body.append(Instr("contract", tuple(factors), "f32"))
        value, op = after
        body += [value, Instr(op, (len(body) - 1, len(body)), "f32")]
        if self.dtype != "f32":
            body.append(Instr("arith.truncf", (len(body) - 1,), self.dtype))
        body.append(Instr("store", (len(body) - 1,), "", (("address", as_expr(f"{n}*d0 + d1")), ("operand", out))))
        return (Dim(const(m)), Dim(const(n)), Dim(const(k), "reduction")), tuple(body)


def alone(spec: KernelSpec, kept: Sequence[int]) -> KernelSpec:
    """A stage with just the operands that it touches."""
    roles = {_BETWEEN: "write" if kept[-1] == _BETWEEN else "read"}
    operands = tuple(replace(spec.operands[i], role=roles.get(i, spec.operands[i].role)) for i in kept)
    number = {old: new for new, old in enumerate(kept)}

    def moved(instr: Instr) -> Instr:
        return replace(
            instr, attributes=tuple((k, number[v] if k == "operand" else v) for k, v in instr.attributes)
        )  # fmt: skip

    return replace(spec, operands=operands, body=tuple(map(moved, spec.body)))


class Runs:
    """A compiled kernel with its tensors; a call runs it."""

    def __init__(self, found: Packing | Block, tensors: Sequence[torch.Tensor], threads: int) -> None:
        spec, target = found.spec, Target.host()
        self._code = elf.load(compile_object(emit(spec, target), target))
        held = list(tensors)
        for operand, function, attributes in found.derivations():
            held[operand] = derive(function, held[operand], attributes)
        held += [torch.zeros(o.size.constant or 0, dtype=TORCH_DTYPES[o.dtype]) for o in spec.operands[len(held) :]]
        pool, error = thread_pool(), ctypes.c_int64(0)
        header = (pool.gomp_parallel, pool.thread_num, ctypes.addressof(error), threads)
        slots = [*header, *(t.data_ptr() for t in held)]
        self._held = (held, error)
        self._function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._code.symbols[kernel_name(spec)])
        self._slots = (ctypes.c_int64 * len(slots))(*slots)

    def __call__(self) -> None:
        self._function(self._slots)


def compared(pair: Pair, threads: int, rounds: int) -> str:
    """A row of the table."""
    spec, target = pair.spec(), Target.host()
    tensors = [torch.randn(o.size.constant or 0).to(TORCH_DTYPES[o.dtype]) for o in spec.operands]
    calls: list[Runs] = []
    for stage, kept in zip(spec.stages, _OPERANDS, strict=True):
        single = packing(alone(stage, kept), [1], target)
        assert isinstance(single, Packing), single
        calls.append(Runs(single, [tensors[i] for i in kept], threads))

    def two() -> None:
        for call in calls:
            call()

    found = block_of(spec, [_FIRST, _SECOND, _BIAS], target)
    if not isinstance(found, Block):
        (apart,) = least([two], rounds)
        return f"{1e6 * apart:.1f} | | | {found}"
    block = Runs(found, tensors[:_BETWEEN], threads)

    def one() -> None:
        block()
        _NOTHING(None)

    apart, together = least([two, one], rounds)
    chosen = "yes" if saved(found) > 0 else "no"
    return f"{1e6 * apart:.1f} | {1e6 * together:.1f} | {apart / together:.2f} | {chosen}"


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rows", type=numbers, default=[1, 16, 128, 784, 3136, 12544])
    parser.add_argument("--widths", type=numbers, default=[64, 128, 256, 384, 768])
    parser.add_argument("--ratios", default="0.25,0.375", help="ranks as shares of the width")
    parser.add_argument("--columns", type=int)
    parser.add_argument("--dtype", default="f32", choices=("f32", "bf16"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print("| rows | width | rank | two kernels, us | one, us | times faster | chosen |")
    print("|---" * 7 + "|")
    for rows in arguments.rows:
        for width in arguments.widths:
            for ratio in arguments.ratios.split(","):
                rank = round(float(ratio) * width)
                pair = Pair(rows, width, rank, arguments.columns or width, arguments.dtype)
                row = compared(pair, arguments.threads, arguments.rounds)
                print(f"| {rows} | {width} | {rank} | {row} |", flush=True)


if __name__ == "__main__":
    main()
