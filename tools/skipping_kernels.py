"""Kernels that leave out weights as zeros come, against our own dense ones: python tools/skipping_kernels.py --threads 2

One row times a weight, float32 or (``--dtype bf16``) bfloat16. ``inputs``: a share of the row is zero; ``outputs``: of the results, by a
condition. Each cell is the dense kernel's time over the other's, for each weight the least of some rounds in turn in one process: with as
many weights in turn as no cache holds (``memory``), as a decode step reads them, or with one (``cache``). The last column is the share of
zeros from which on nothing is lost (interpolated).
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Sequence
from unittest import mock

import torch

from effc.compiler.codegen.cpu.emit import emit, kernel_name
from effc.compiler.codegen.cpu.objects import compile_object
from effc.compiler.codegen.cpu.schedules import Packing, packing
from effc.compiler.codegen.cpu.skipping import choice
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import as_expr, const
from effc.compiler.ir.spec import ITEM_SIZE, Dim, Instr, KernelSpec, Operand
from effc.runtime import elf
from effc.runtime.derive import derive
from effc.runtime.pages import Pages
from effc.runtime.threads import threads as thread_pool

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
#: Columns and sum: SmolLM2-135M's down, query with key and value, and output projections; its up projection.
PRODUCTS = (("inputs", 576, 1536), ("inputs", 960, 576), ("inputs", 576, 576), ("outputs", 1536, 576))
#: Bytes of weights in turn: more than a last-level cache.
FAR_BYTES = 640 << 20


def spec_of(method: str, n: int, k: int, dtype: str) -> KernelSpec:
    """``x[k] @ w[n, k].T``, ``x`` with zeros; with zeros among the results (``outputs``); or with none that is known (``dense``)."""
    operands = [
        Operand(dtype, "read", const(k)),
        Operand(dtype, "read", const(n * k)),
        Operand("f32", "write", const(n)),
    ]
    body = [_load(dtype, 0, "d1"), _load(dtype, 1, f"{k}*d0 + d1"), Instr("contract", (0, 1), "f32")]
    if method == "outputs":
        operands.append(Operand("i1", "read", const(n)))
        body += [
            _load("i1", 3, "d0"),
            Instr("constant", (), "f32", (("value", 0.0),)),
            Instr("arith.select", (3, 4, 2), "f32"),
        ]
    body.append(Instr("store", (len(body) - 1,), "", (("address", as_expr("d0")), ("operand", 2))))
    zeros = (("zeros", (0,)),) if method == "inputs" else ()
    return KernelSpec(
        "contraction", (Dim(const(n)), Dim(const(k), "reduction")), tuple(operands), tuple(body), (), zeros
    )


def _load(dtype: str, operand: int, address: str) -> Instr:
    return Instr("load", (), dtype, (("address", as_expr(address)), ("operand", operand)))


class Runs:
    """A kernel over ``count`` weights in turn, compiled."""

    def __init__(self, spec: KernelSpec, weight: torch.Tensor, count: int, threads: int) -> None:
        target = Target.host()
        with (
            mock.patch.object(Target, "gaps", 1.0),
            mock.patch.object(choice, "worth", return_value=True),
        ):  # whatever the choice
            found = packing(spec, [1], target)
        assert isinstance(found, Packing), found
        code = elf.load(compile_object(emit(found.spec, target), target))
        derived = {o: derive(function, weight, attributes) for o, function, attributes in found.derivations()}
        pool, error = thread_pool(), ctypes.c_int64(0)
        header = (pool.gomp_parallel, pool.thread_num, ctypes.addressof(error), threads)
        sizes = [o.size.constant or 0 for o in found.spec.operands]
        self.given = [derived.get(i, torch.zeros(size)) for i, size in enumerate(sizes)]
        pages = Pages()  # as a compiled model's weights
        self.weights = [pages.copy(derived[1]) for _ in range(count)]
        self.held = (code, error)
        self._header, self._function = (
            header,
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.symbols[kernel_name(found.spec)]),
        )

    def seconds(self, row: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Of each weight."""
        calls = []
        for weight in self.weights:
            tensors = list(self.given)
            tensors[0], tensors[1] = row, weight
            if len(tensors) > 3 and tensors[3].numel() == len(condition):
                tensors[3] = condition
            calls.append((ctypes.c_int64 * (4 + len(tensors)))(*self._header, *(t.data_ptr() for t in tensors)))
        spent = []
        for slots in calls:
            started = time.perf_counter()
            self._function(slots)
            spent.append(time.perf_counter() - started)
        return torch.tensor(spent)


def ratios(method: str, n: int, k: int, dtype: str, count: int, threads: int, rounds: int) -> list[float]:
    """Dense time over that of the kernel with each of `SHARES`."""
    weight = torch.randn(n, k).to(DTYPES[dtype])
    dense, found = (Runs(spec_of(m, n, k, dtype), weight, count, threads) for m in ("dense", method))
    rows, conditions = [], []
    for share in SHARES:
        rows.append((torch.randn(k) * (torch.rand(k).argsort() >= share * k)).to(weight.dtype))
        conditions.append(torch.rand(n).argsort() < share * n)
    every = torch.randn(k).to(weight.dtype)
    best = [torch.full((count,), torch.inf)] * (1 + len(SHARES))
    repeats = 1 if count > 1 else 100
    for _ in range(rounds):
        for i in range(len(best)):
            row = every if i == 0 or method == "outputs" else rows[i - 1]
            run = dense if i == 0 else found
            for _ in range(repeats):
                best[i] = torch.minimum(best[i], run.seconds(row, conditions[max(i - 1, 0)]))
    return [float(best[0].sum() / b.sum()) for b in best[1:]]


def break_even(found: Sequence[float]) -> str:
    """The share from which on no ratio is below 1."""
    below = [i for i, r in enumerate(found) if r < 1]
    if not below:
        return f"{SHARES[0]:.0%}"
    last = below[-1]
    if last + 1 == len(found):
        return "none"
    part = (1 - found[last]) / (found[last + 1] - found[last])
    return f"{SHARES[last] + part * (SHARES[last + 1] - SHARES[last]):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'zeros':34}" + "".join(f"{share:7.0%}" for share in SHARES) + "   break-even")
    for method, n, k in PRODUCTS:
        for place, count in (("memory", -(-FAR_BYTES // (ITEM_SIZE[args.dtype] * n * k))), ("cache", 1)):
            found = ratios(method, n, k, args.dtype, count, args.threads, args.rounds)
            cells = "".join(f"{r:7.2f}" for r in found)
            print(f"{method:8} {k:5} to {n:5}, {place:8}    {cells}   {break_even(found)}", flush=True)


if __name__ == "__main__":
    main()
