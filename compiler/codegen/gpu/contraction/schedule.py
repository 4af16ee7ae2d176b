"""Tiles of a contraction, and what they are counted to cost.

Schedule: ``bm`` x ``bn`` results of a program, in steps of ``bk`` along the sum; ``warps``; ``stages`` of loads in flight; ``split``: parts
of the sum, each a program of its own, added by a second kernel; ``group``: row blocks that follow each other before the next column, so
that what they read stays in L2; ``descriptors``: 1 where factors are copied by them; ``persistent``: 1 where as many programs as there
are processors take tile after tile; ``tail``: parts of the sum of each tile of a last wave that leaves processors idle (`tail`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

from effc.compiler.codegen.gpu.body import flat_size
from effc.compiler.codegen.gpu.contraction.descriptors import MOST_SIDE, both_described
from effc.compiler.codegen.gpu.contraction.roles import Roles, needed
from effc.compiler.codegen.gpu.hardware import hardware
from effc.compiler.codegen.gpu.launch import power_of_two
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, Schedule

_NAMES = ("bm", "bn", "bk", "group", "split", "stages", "warps", "descriptors", "persistent", "tail")
#: A guess for a size that is known at run time only.
_UNKNOWN = 1024
#: The least part of a sum that is worth a program of its own.
_LEAST_PART, _MOST_PARTS = 256, 16
#: Bytes a cycle that one processor gets from L2 and from memory, of an A100 (NVIDIA's white paper). Of other GPUs these are not known as
#: well, and only ratios choose a tile: so the rates are an A100's too.
NEAR_BYTES, FAR_BYTES = 64, 10
_COUNTED = hardware(80)
#: Multiply-adds a cycle of one processor without tensor cores, in f32.
SINGLE_RATE = _COUNTED.rate("f32")
#: Rows below which Hopper's processors multiply by single warps, and the share of the rate that is left to them.
_WIDE_ROWS, _NARROW = 64, 0.6
#: Programs of one processor beyond which no more of the overhead is hidden.
_TOGETHER = 4
#: Cycles that a program spends before its first product and after its last.
OVERHEAD = 2000
#: Elements of factors a thread, where each is loaded by itself: its pointer takes two registers.
_SINGLE_ELEMENTS = 32
#: Cycles of a step beside loads and products: barriers, addresses; of one thread that asks for tiles by descriptors.
STEP, _STEP_DESCRIBED = 100, 40
#: The part of `OVERHEAD` that is left to a tile of a program that asks for the next one's factors before it ends.
_NEXT_TILE = 0.5


@dataclass(frozen=True)
class Tiling:
    """See the module's docstring."""

    bm: int
    bn: int
    bk: int
    group: int = 8
    split: int = 1
    stages: int = 3
    warps: int = 4
    descriptors: int = 0
    persistent: int = 0
    tail: int = 1

    def schedule(self) -> Schedule:
        return Schedule(tuple(zip(_NAMES, astuple(self), strict=True)))


def chosen(roles: Roles, target: GpuTarget) -> Tiling:
    """The spec's own schedule, else the tiling of the lowest count."""
    wanted = dict(roles.spec.schedule.parameters)
    if wanted.keys() >= set(_NAMES):  # nothing is left to choose
        return Tiling(*(int(wanted[name]) for name in _NAMES))
    best = min(_tilings(roles, target), key=lambda t: (cost(roles, target, t), -t.bm * t.bn, astuple(t)))
    return Tiling(*(wanted.get(name, value) for name, value in zip(_NAMES, astuple(best), strict=True)))


def candidates(roles: Roles, target: GpuTarget, most: int = 16) -> list[Schedule]:
    """By rising count, at most ``most``."""
    found = sorted(_tilings(roles, target), key=lambda t: (cost(roles, target, t), -t.bm * t.bn, astuple(t)))
    return [t.schedule() for t in found[:most]]


def shared_bytes(roles: Roles, tiling: Tiling) -> int:
    """Shared memory of the tiles in flight, and, beside those of the next tile, of the results on their way to memory."""
    size = max(ITEM_SIZE[f.dtype] for f in (roles.left, roles.right))
    in_flight = (tiling.bm + tiling.bn) * tiling.bk * size * tiling.stages
    return in_flight + (tiling.bm * tiling.bn * _result_bytes(roles) if tiling.persistent else 0)


def _result_bytes(roles: Roles) -> int:
    """Of one result in shared memory: Triton brings half of a large tile of 16 bits there at a time, and all of one of 32 (measured by
    compiling tiles of 64 x 256 to 256 x 128, with triton 3.6).
    """
    spec = roles.spec
    stored = max(ITEM_SIZE[spec.operands[i["operand"]].dtype] for i in spec.body if i.op == "store")
    return stored if stored >= 4 else 1


def together(roles: Roles, target: GpuTarget, tiling: Tiling) -> int:
    """Programs that a processor is counted to hold at once, up to four: as many as its shared memory does; one that is persistent."""
    if tiling.persistent:
        return 1
    return max(1, min(_TOGETHER, target.shared_bytes // max(shared_bytes(roles, tiling), 1)))


def cost(roles: Roles, target: GpuTarget, tiling: Tiling, held: int | None = None) -> float:
    """Cycles, counted: of a wave of programs the larger of multiplications and loads, for all waves. ``held``: programs that a processor
    holds at once, where that is known.
    """
    m, n, k, batch = (
        _guess(roles, dims) for dims in (roles.rows, roles.columns, (*roles.outer_sums, *roles.sums), roles.batch)
    )
    programs = -(-m // tiling.bm) * -(-n // tiling.bn) * batch * tiling.split
    steps = max(1, -(-k // (tiling.bk * tiling.split)))
    at_once = together(roles, target, tiling) if held is None else max(1, min(_TOGETHER, held))
    waves: float = -(-programs // target.processors)
    adding = m * n * batch * tiling.split * 8 / (FAR_BYTES * target.processors) + OVERHEAD if tiling.split > 1 else 0.0
    if tiling.tail > 1:
        waves = programs // target.processors + 1 / tiling.tail
        parts = programs % target.processors * tiling.tail * tiling.bm * tiling.bn
        adding = parts * 8 / (FAR_BYTES * target.processors) + 2 * OVERHEAD
    beside = _STEP_DESCRIBED if tiling.descriptors else STEP
    turns = 1 + _NEXT_TILE * (waves - 1) if tiling.persistent else -(-math.ceil(waves) // at_once)
    return waves * steps * step(roles, target, tiling.bm, tiling.bn, tiling.bk, beside) + turns * OVERHEAD + adding


def step(roles: Roles, target: GpuTarget, bm: int, bn: int, bk: int, beside: int = STEP) -> float:
    """Cycles of one step along the sum: the larger of multiplications and loads, and what it costs ``beside``."""
    size = max(ITEM_SIZE[f.dtype] for f in (roles.left, roles.right))
    pieces = roles.left.pieces * roles.right.pieces
    multiply = bm * bn * bk * pieces / rate(target.arithmetic(roles.spec, roles.left.dtype), target, bm, bn)
    return max(multiply, (bm + bn) * bk * size / NEAR_BYTES) + beside


def rate(dtype: str, target: GpuTarget, bm: int, bn: int) -> float:
    """Multiply-adds a cycle of one processor on a tile of ``bm`` x ``bn`` results; ``dtype``: `GpuTarget.arithmetic`. A small tile keeps
    tensor cores waiting: its factors are loaded into registers more often than they are used.
    """
    found = _COUNTED.rate(dtype) * min(1.0, math.sqrt(bm * bn / (128 * 128)))
    return found * _NARROW if target.has_wgmma and bm < _WIDE_ROWS else found


def guess(size: Expr) -> int:
    """``size``, where it is known."""
    return max(1, _UNKNOWN if size.constant is None else size.constant)


def _guess(roles: Roles, dims: tuple[int, ...]) -> int:
    return guess(flat_size(roles.spec, dims))


def _tilings(roles: Roles, target: GpuTarget) -> Iterator[Tiling]:
    size = ITEM_SIZE[roles.left.dtype]
    rows, columns, sums = (flat_size(roles.spec, dims) for dims in (roles.rows, roles.columns, roles.sums))
    least = 32 if size == 1 else 16
    most = 64 if size == 4 else 128 if size == 2 else 256
    groups = [f.group for f in (roles.left, roles.right) if f.group]
    steps = {min([power_of_two(sums, least, block), *groups]) for block in (most // 2, most // 4)}
    k = _guess(roles, (*roles.outer_sums, *roles.sums))
    wide = (16, 32, 64, 128) if size == 4 else (16, 32, 64, 128, 256)
    single = not _vectors(roles)
    described = target.descriptors and both_described(roles) is not None
    found: dict[Tiling, None] = {}
    for bm in {power_of_two(rows, 16, block) for block in wide}:
        for bn in {power_of_two(columns, 16, block) for block in wide}:
            if bm * bn > 128 * (128 if size == 4 else 256):
                continue
            for bk in steps:
                warps = 8 if bm * bn >= 128 * 128 else 4
                if single and (bm + bn) * bk > _SINGLE_ELEMENTS * 32 * warps and bk > least:
                    continue
                tiling = _staged(roles, target, Tiling(bm, bn, bk, warps=warps))
                parts = [
                    1,
                    *(p for p in (2, 4, 8, _MOST_PARTS) if k // p >= _LEAST_PART and roles.accumulator == "f32"),
                ]
                for split in parts:
                    plain = replace(tiling, group=8, split=split)
                    found[plain] = None
                    cut = _tail(roles, target, plain)
                    if cut > 1:
                        found[replace(plain, tail=cut)] = None
                    if described and max(bm, bn, bk) <= MOST_SIDE:
                        found[replace(plain, descriptors=1)] = None
                        going_on = _staged(roles, target, replace(plain, descriptors=1, persistent=1))
                        fits = shared_bytes(roles, going_on) <= target.shared_bytes
                        if split == 1 and not roles.batch and fits:
                            found[going_on] = None
                            found[replace(going_on, tail=cut)] = None
    return iter(found)


def _staged(roles: Roles, target: GpuTarget, tiling: Tiling) -> Tiling:
    """With as many loads in flight as fit; two where not even those do."""
    offered = (replace(tiling, stages=stages) for stages in (4, 3, 2))
    return next((t for t in offered if shared_bytes(roles, t) <= target.shared_bytes), replace(tiling, stages=2))


def _tail(roles: Roles, target: GpuTarget, tiling: Tiling) -> int:
    """Parts of each tile of the last wave for which there are processors; 1: it is whole, or sizes are known at run time only."""
    sizes = [flat_size(roles.spec, dims).constant for dims in (roles.rows, roles.columns, roles.sums)]
    m, n, k = sizes
    if m is None or n is None or k is None or roles.batch or roles.outer_sums or tiling.split > 1:
        return 1
    tiles = -(-m // tiling.bm) * -(-n // tiling.bn)
    rest = tiles % target.processors
    if tiles < target.processors or rest == 0 or roles.accumulator != "f32":
        return 1
    return max(1, min(target.processors // rest, k // _LEAST_PART, _MOST_PARTS))


def _vectors(roles: Roles) -> bool:
    """Whether all loads of the factors are of neighbours, at multiples of 16 bytes."""
    spec = roles.spec
    for i in needed(spec, [roles.left.value, roles.right.value]):
        instr = spec.body[i]
        if instr.op == "load":
            steps = [instr["address"].coefficient(f"d{d}") for d in range(len(spec.dims))]
            numbers = [None if s is None else s.constant for s in steps]
            vector = 16 // ITEM_SIZE[instr.dtype]
            if not all(n is not None and (n == 1 or n % vector == 0) for n in numbers):
                return False
    return True
