"""The rows of ``gpu_tables.py`` that are single kernels: effc's, and what PyTorch has for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from contraction_cases import Case
from gpu_cases import codes, gelu, groups, linear, softmax
from gpu_interpreted import SM90, operands_of
from gpu_pairs import PairCase
from gpu_table_bench import Bench, Timed, Wanted
from gpu_table_kept import Found
from sparse_cases import pruned, sparsity, with_sparsity
from test_attention_kernel import attention_spec
from torch import Tensor
from torch.nn import functional as F

from effc.compiler.codegen.gpu.sparse.choice import cost, derivations, schedules, sparse_spec
from effc.compiler.codegen.gpu.sparse.form import Form, find
from effc.compiler.ir.formats import NF4
from effc.compiler.ir.spec import KernelSpec
from effc.runtime.derive import derive
from effc.runtime.dtypes import TORCH_DTYPES
from effc.runtime.nibbles import pack_nibbles


@dataclass(frozen=True)
class Row:
    """``columns(bench)``: what is timed, by name, the rival first; ``wanted()``: the kernels among these. ``alike``: all compute the same,
    so that the largest relative L2 difference to the rival's result, ``difference``, is found too.
    """

    name: str
    wanted: Callable[[], Sequence[Wanted]]
    columns: Callable[[Bench], dict[str, Timed]]
    alike: bool = True

    def run(self, bench: Bench) -> Found:
        """Times of all columns."""
        columns = self.columns(bench)
        times = dict(zip(columns, (1e6 * s for s in bench.seconds([*columns.values()])), strict=True))
        return Found(times, {"difference": _difference([*columns.values()])} if self.alike else {})


def _difference(columns: Sequence[Timed]) -> float:
    rival, *ours = (call().double().flatten() for call in columns)
    return max(float((y - rival).norm() / rival.norm().clamp(min=1e-30)) for y in ours)


def rows(piece: str, small: bool) -> list[Row]:
    """Of a piece of kernels."""
    return list(PIECES[piece](partial(_scaled, small=small)))


def _scaled(size: int, small: bool) -> int:
    return max(16, size // 64) if small and size > 16 else size


Scale = Callable[[int], int]


def _normal(bench: Bench, dtype: str, *shape: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator(bench.device).manual_seed(0)
    made = torch.randn(*shape, device=bench.device, generator=generator) * spread
    return made.to(TORCH_DTYPES[dtype])


# -- products ---------------------------------------------------------------------------------------------------------
_SQUARES = (1024, 2048, 4096, 8192)
#: Rows, columns and sums of layers of language and vision models, and sizes that no tile divides.
_LAYERS = (
    (2048, 4096, 4096), (2048, 11008, 4096), (2048, 4096, 11008), (512, 3072, 768), (6272, 2304, 768), (1000, 1001, 999),
)  # fmt: skip


def _products(scale: Scale) -> Iterator[Row]:
    """Large products against cuBLAS."""
    for dtype in ("f16", "bf16"):
        for sizes in (*((n, n, n) for n in _SQUARES), *_LAYERS):
            m, n, k = map(scale, sizes)
            spec = Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), dtype).spec()
            yield _product(f"{dtype} {'x'.join(map(str, sizes))}", spec, (m, n, k), dtype)


def _product(name: str, spec: KernelSpec, sizes: tuple[int, int, int], dtype: str) -> Row:
    def columns(bench: Bench) -> dict[str, Timed]:
        m, n, k = sizes
        x, w = _normal(bench, dtype, m, k), _normal(bench, dtype, n, k, spread=k**-0.5)
        return {
            "cuBLAS": lambda: x @ w.T,
            "pointers": bench.kernel((spec, False), [x, w]),
            "descriptors": bench.kernel((spec, True), [x, w]),
        }

    return Row(name, lambda: ((spec, False), (spec, True)), columns)


def _epilogues(scale: Scale) -> Iterator[Row]:
    """Few rows, and a bias and ReLU behind, against cuBLAS and a kernel of its own behind."""
    few = [(m, n, k) for m in (1, 16, 64, 128) for n, k in ((4096, 4096), (11008, 4096), (4096, 11008))]
    for m, n, k in (*few, (512, 3072, 768), (2048, 4096, 4096)):
        sizes = scale(m), scale(n), scale(k)
        yield _linear(f"relu(linear) f16 {m}x{n}x{k}", linear(*sizes, "f16"), sizes)


def _linear(name: str, spec: KernelSpec, sizes: tuple[int, int, int]) -> Row:
    def columns(bench: Bench) -> dict[str, Timed]:
        m, n, k = sizes
        x, w, bias = _normal(bench, "f16", m, k), _normal(bench, "f16", n, k, spread=k**-0.5), _normal(bench, "f32", n)
        half = bias.half()
        return {
            "cuBLAS, then ReLU": lambda: F.relu(F.linear(x, w, half)),
            "pointers": bench.kernel((spec, False), [x, w, bias]),
            "descriptors": bench.kernel((spec, True), [x, w, bias]),
        }

    return Row(name, lambda: ((spec, False), (spec, True)), columns)


# -- weights of few bits ----------------------------------------------------------------------------------------------
def _decode(scale: Scale) -> Iterator[Row]:
    """Few rows times codes, and cuBLAS's product in bfloat16, against effc's own."""
    for m in (1, 16):
        for n, k in ((4096, 4096), (11008, 4096), (4096, 11008)):
            yield _coded(f"{m}x{n}x{k}", (scale(m), scale(n), 128 * (scale(k) // 128) or 128))


def _coded(name: str, sizes: tuple[int, int, int]) -> Row:
    m, n, k = sizes
    specs = {
        "effc bf16": Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), "bf16").spec(),
        "effc int8": codes(m, n, k),
        "effc int4": groups(m, n, k, 128 if k > 128 else 64),
        "effc NF4": groups(m, n, k, 64, NF4),
    }

    def columns(bench: Bench) -> dict[str, Timed]:
        x, w = _normal(bench, "bf16", m, k), _normal(bench, "bf16", n, k, spread=k**-0.5)
        ours = {name: bench.kernel((spec, True), _operands(bench, spec)) for name, spec in specs.items()}
        return {**ours, "cuBLAS bf16": lambda: x @ w.T}

    return Row(name, lambda: [(spec, True) for spec in specs.values()], columns, alike=False)


def _operands(bench: Bench, spec: KernelSpec) -> list[Tensor]:
    """Random ones, codes two a byte where they are packed."""
    found = []
    for operand, made in zip(spec.operands, operands_of(spec), strict=True):
        if operand.role != "write":
            bytes_ = pack_nibbles(made, 0, made.numel()) if operand.role == "packed" else made
            found.append(bytes_.to(bench.device))
    return found


# -- attention, pairs, zeros, rows ------------------------------------------------------------------------------------
def _attention(scale: Scale) -> Iterator[Row]:
    """Against the kernel that torch takes."""
    for name, (b, h, q, keys, d), group, causal in (
        ("prefill 1x32x2048x128, 4 heads a key", (1, 32, 2048, 2048, 128), 4, True),
        ("encoder 8x12x512x64", (8, 12, 512, 512, 64), 1, False),
        ("image 8x12x197x64", (8, 12, 197, 197, 64), 1, False),
        ("decode 1x32x2048x128, 4 heads a key", (1, 32, 1, 2048, 128), 4, False),
        ("decode 16x32x2048x128, 4 heads a key", (16, 32, 1, 2048, 128), 4, False),
    ):
        yield _attends(name, (b, h, scale(q), scale(keys), scale(d)), group, causal)


def _attends(name: str, sizes: tuple[int, int, int, int, int], group: int, causal: bool) -> Row:
    b, h, q, keys, d = sizes
    spec = attention_spec((b, h, q, keys, d, d), dtype="f16", causal=causal, group=group)

    def columns(bench: Bench) -> dict[str, Timed]:
        query = _normal(bench, "f16", b, h, q, d)
        key, value = (_normal(bench, "f16", b, h // group, keys, d) for _ in range(2))
        scale = float(spec.get("scale"))
        attend = partial(F.scaled_dot_product_attention, is_causal=causal, scale=scale, enable_gqa=group > 1)
        ours = bench.kernel((spec, True), [t.flatten() for t in (query, key, value)])
        return {"torch": lambda: attend(query, key, value), "effc": ours}

    return Row(name, lambda: [(spec, True)], columns)


def _pairs(scale: Scale) -> Iterator[Row]:
    """Two products as one kernel, against two of cuBLAS's and what stands between and behind."""
    for name, case in (
        ("factors f16 8192x4096x256x4096", PairCase(scale(8192), scale(4096), scale(256), scale(4096), "f16")),
        ("factors f16 8192x1024x64x1024", PairCase(scale(8192), scale(1024), scale(64), scale(1024), "f16")),
        ("mlp f16 50176x96x384x96", PairCase(scale(scale(50176)), 96, 384, 96, "f16", "math.erf")),
        (
            "mlp and its norm f16 50176x96x384x96",
            PairCase(scale(scale(50176)), 96, 384, 96, "f16", "math.erf", norm=True),
        ),
    ):
        yield _pair(name, case)


def _pair(name: str, case: PairCase) -> Row:
    spec = case.spec()

    def columns(bench: Bench) -> dict[str, Timed]:
        x, right, left, bias, skip, _, *between = (t.to(bench.device) for t in case.tensors())
        rows, first, second = x.view(case.m, case.k), right.view(case.h, case.k), left.view(case.n, case.h)

        def apart() -> Tensor:
            normed = F.rms_norm(rows, (case.k,), eps=0.0) if case.norm else rows
            hidden = normed @ first.T
            hidden = torch.erf(hidden + 0.5) if case.act else hidden
            return torch.addmm(bias, hidden, second.T) + skip.view(case.m, case.n)

        return {"cuBLAS": apart, "effc": bench.kernel((spec, True), [x, right, left, bias, skip, *between])}

    return Row(name, lambda: [(spec, True)], columns)


def _zeros(scale: Scale) -> Iterator[Row]:
    """One row, and many, times a matrix with zeros, against cuBLAS's dense product."""
    for m, pattern, left in ((1, (16, 1), 0.5), (1, (1, 16), 0.5), (1, (1, 1), 0.1), (2048, (32, 32), 0.1)):
        name = f"{m}x4096x4096 f16, {left:.0%} of blocks of {pattern[0]}x{pattern[1]}"
        yield _sparse(name, (scale(m), scale(4096), scale(4096)), pattern, left)


def _sparse(name: str, sizes: tuple[int, int, int], pattern: tuple[int, int], left: float) -> Row:
    m, n, k = sizes

    @cache
    def made() -> tuple[Tensor, Form, KernelSpec]:
        weight = pruned(n, k, *pattern, left).half()
        dense = Case((m, n, k), 1, (k, 0, 1), (0, k, 1), (n, 1, 0), "f16").spec()
        form = find(with_sparsity(dense, sparsity(weight, *pattern)))
        assert isinstance(form, Form), form
        return weight, form, sparse_spec(form.spec, min(schedules(form), key=partial(cost, form, SM90)), 1)

    def columns(bench: Bench) -> dict[str, Timed]:
        weight, form, spec = made()
        x, w = _normal(bench, "f16", m, k), weight.to(bench.device)
        lists = [derive(name, weight, given).flatten() for name, given in derivations(form)]
        ours = bench.kernel((spec, True), [x.flatten(), *(t.to(bench.device) for t in lists)])
        return {"cuBLAS": lambda: x @ w.T, "effc": ours}

    return Row(name, lambda: [(made()[2], True)], columns)


def _rows(scale: Scale) -> Iterator[Row]:
    """Kernels that memory bounds, against ATen's."""
    m, n = scale(8192), scale(4096)
    kinds: dict[str, tuple[KernelSpec, str, Callable[[Tensor], Tensor]]] = {
        "softmax f32": (softmax(m, n), "f32", lambda x: x.softmax(-1)),
        "gelu f16": (gelu(m * n), "f16", F.gelu),
    }
    for name, (spec, dtype, op) in kinds.items():
        yield _pointwise(f"{name} 8192x4096", spec, dtype, op, (m, n))


def _pointwise(name: str, spec: KernelSpec, dtype: str, op: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> Row:
    def columns(bench: Bench) -> dict[str, Timed]:
        x = _normal(bench, dtype, *shape)
        return {"ATen": lambda: op(x), "effc": bench.kernel((spec, True), [x.flatten()])}

    return Row(name, lambda: [(spec, True)], columns)


#: By name, in the order of their worth.
PIECES: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "products": _products,
    "epilogues": _epilogues,
    "decode": _decode,
    "attention": _attention,
    "pairs": _pairs,
    "zeros": _zeros,
    "rows": _rows,
}
