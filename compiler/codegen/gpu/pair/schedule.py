"""Tiles of a pair of products, and what they are counted to cost, beside two kernels.

Schedule: ``bm`` rows of a program, all the way. What lies between the products is made ``bh`` columns at a time, in steps of ``bk`` along
the first sum, and never leaves the program. Where ``hold`` is ``"hidden"`` (low-rank factors), all of it is one tile, which stays while the
results pass, ``bn`` columns at a time; else (``"results"``: an MLP of few columns) ``bn`` results stay while it passes. ``parts``: programs
that share the columns of a row of tiles, each with the first product of its own. ``warps``; ``stages`` of loads in flight. Behind a norm
``bk`` is all of the first sum, so that a program has whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields

from effc.compiler.codegen.gpu.body import flat_size
from effc.compiler.codegen.gpu.contraction import schedule as single
from effc.compiler.codegen.gpu.contraction.roles import Roles
from effc.compiler.codegen.gpu.launch import power_of_two
from effc.compiler.codegen.gpu.loops import Plan, plan
from effc.compiler.codegen.gpu.pair.reading import Norm, Pair
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.spec import ITEM_SIZE, Schedule

#: Elements of a tile of results, and of what lies between, that warps hold in registers beside each other: 64 a thread of eight warps.
_MOST_HELD = 128 * 128
#: Columns of what lies between that are made at a time where results are held: wider tiles spill.
_HIDDEN = (32, 64, 128)
#: Operations in f32 that a processor computes a cycle.
_LANES = 64
#: Cycles that a launch behind another costs: the last programs of the one end, the first of the other begin.
LAUNCH = 2000
#: Bytes of L2 of which an intermediate may take a part and be read from there: an A100's, and no less than other data-centre GPUs'.
_L2_BYTES = 40 << 20


@dataclass(frozen=True)
class PairTiling:
    """See the module's docstring."""

    bm: int
    bh: int
    bk: int
    bn: int
    hold: str
    parts: int = 1
    stages: int = 3
    warps: int = 4

    def schedule(self) -> Schedule:
        return Schedule(tuple(sorted(zip(_NAMES, astuple(self), strict=True))))


_NAMES = tuple(f.name for f in fields(PairTiling))


def chosen(pair: Pair, target: GpuTarget, wanted: Schedule) -> PairTiling | None:
    """What ``wanted`` says, where it says all, else the tiling of the lowest count; None where there is none."""
    given = dict(wanted.parameters)
    if given.keys() >= set(_NAMES):
        return PairTiling(**{name: given[name] for name in _NAMES})  # type: ignore[arg-type]
    return next(iter(_sorted(pair, target)), None)


def candidates(pair: Pair, target: GpuTarget, most: int = 16) -> list[Schedule]:
    """By rising count, at most ``most``."""
    return [tiling.schedule() for tiling in _sorted(pair, target)[:most]]


def saved(pair: Pair, target: GpuTarget) -> float:
    """Cycles by which one kernel is counted to be faster than two; below 0: it is slower."""
    best = chosen(pair, target, Schedule())
    return -1.0 if best is None else apart(pair, target) - cost(pair, target, best)


def apart(pair: Pair, target: GpuTarget) -> float:
    """Cycles of two kernels, and of the bytes between them."""
    both = sum(single.cost(roles, target, single.chosen(roles, target)) for roles in (pair.first, pair.second))
    handed = _handed_on(pair, target, pair.hidden, _between(pair))
    if pair.norm is not None:
        body, link = pair.norm.spec.body, pair.norm.link
        handed += _handed_on(pair, target, link.length, body[link.stored].dtype)
        handed += single.guess(pair.rows) * link.length * len(body) / (_LANES * target.processors)
    return both + handed


def _handed_on(pair: Pair, target: GpuTarget, length: int, dtype: str) -> float:
    """Cycles of writing and reading rows of ``length`` elements, and of another launch."""
    stored = single.guess(pair.rows) * length * ITEM_SIZE[dtype]
    rate = single.NEAR_BYTES if 2 * stored <= _L2_BYTES else single.FAR_BYTES
    return 2 * stored / (rate * target.processors) + LAUNCH


def cost(pair: Pair, target: GpuTarget, t: PairTiling) -> float:
    """Cycles, counted as those of one product (`contraction.schedule`): for all waves of programs."""
    rows, columns = single.guess(pair.rows), single.guess(pair.columns)
    sums = single.guess(flat_size(pair.first.spec, (*pair.first.outer_sums, *pair.first.sums)))
    slices = -(-pair.hidden // t.bh)
    shares = -(-columns // (t.bn * t.parts)) if t.hold == "hidden" else 1
    first = slices * -(-sums // t.bk) * single.step(pair.first, target, t.bm, t.bh, t.bk)
    stored = t.bm * t.bn * ITEM_SIZE[_between(pair)] / single.NEAR_BYTES
    second = slices * shares * (single.step(pair.second, target, t.bm, t.bn, t.bh) + stored / slices)
    norm = 0.0 if pair.norm is None else t.bm * pair.norm.link.length * len(pair.norm.spec.body) / _LANES
    waves = -(-(-(-rows // t.bm) * t.parts) // target.processors)
    return waves * (norm + first + second + single.OVERHEAD)


def norm_plan(norm: Norm, t: PairTiling) -> Plan:
    """All columns of a program's rows at once."""
    return plan(norm.spec.with_schedule(rows=t.bm, columns=t.bk, warps=t.warps))


def shared_bytes(pair: Pair, t: PairTiling) -> int:
    """Shared memory of the tiles in flight, and of what lies between, a factor of the second product."""
    loaded = max((t.bm + t.bh) * t.bk * _size(pair.first), t.bh * t.bn * _size(pair.second)) * t.stages
    return loaded + t.bm * t.bh * _size(pair.second)


def _sorted(pair: Pair, target: GpuTarget) -> list[PairTiling]:
    fitting = [t for t in _tilings(pair) if shared_bytes(pair, t) <= target.shared_bytes]
    return sorted(fitting, key=lambda t: (cost(pair, target, t), -t.bm * t.bn, astuple(t)))


def _tilings(pair: Pair) -> Iterator[PairTiling]:
    rows, columns, sums = pair.rows, pair.columns, flat_size(pair.first.spec, pair.first.sums)
    groups = [f.group for f in (pair.first.left, pair.first.right) if f.group]
    bk = min([power_of_two(sums, 16, 128 // _size(pair.first)), *groups])
    if pair.norm is not None:
        bk = power_of_two(sums, 16, _MOST_HELD)
    whole = power_of_two(pair.second.spec.dims[pair.second.sums[0]].size, 16, 1 << 20)
    for bm in sorted({power_of_two(rows, 16, block) for block in (16, 32, 64, 128)}):
        if pair.norm is not None and bm * bk > _MOST_HELD:
            continue
        if bm * whole <= _MOST_HELD:
            for bn in sorted({power_of_two(columns, 16, block) for block in (64, 128)}):
                for parts in (1, 2, 4, 8, 16):
                    if bm * bn <= _MOST_HELD and (parts - 1) * bn < (columns.constant or bn):
                        yield from _in_flight(bm, whole, bk, bn, "hidden", parts)
        for parts in (1, 2, 4):
            if columns.constant is None:
                continue
            bn = power_of_two(columns, 16, 1 << 20) // parts
            if bn >= 16 and bm * bn <= _MOST_HELD and (parts - 1) * bn < columns.constant:
                for bh in sorted({min(block, whole) for block in _HIDDEN}):
                    yield from _in_flight(bm, bh, bk, bn, "results", parts)


def _in_flight(bm: int, bh: int, bk: int, bn: int, hold: str, parts: int) -> Iterator[PairTiling]:
    warps = 8 if bm * max(bn, bh) >= _MOST_HELD else 4
    for stages in (3, 2):
        yield PairTiling(bm, bh, bk, bn, hold, parts, stages, warps)


def _size(roles: Roles) -> int:
    return max(ITEM_SIZE[f.dtype] for f in (roles.left, roles.right))


def _between(pair: Pair) -> str:
    return pair.first.spec.body[pair.link.stored].dtype
