"""What the stages of a chain must be, and the sizes that follow: blocks of rows, and the scratch memory of a thread.

All stages cut the rows into the same tiles, so that a thread can take a run of them through one stage after the other. A block is a few
tiles, whose intermediate stays in L1 until the next stage has read it; the factors of all stages stay in L2.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from effc.compiler.codegen.cpu.contraction.amx_form import UNIT_ROWS
from effc.compiler.codegen.cpu.contraction.cast import cast
from effc.compiler.codegen.cpu.contraction.form import form
from effc.compiler.codegen.cpu.contraction.roles import Nest
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec

#: Threads that have scratch memory; pages of it that no thread touches cost nothing.
MOST_THREADS = 32
#: Bytes of a block's widest intermediate: a third of L1, beside a panel's lines and the rows of the other factor; and in L2 with tile
#: registers, which each stage configures anew for each block.
BLOCK_BYTES, TILE_BLOCK_BYTES = 16 * 1024, 128 * 1024


@dataclass(frozen=True)
class Link:
    """An intermediate: ``operand`` of the chain, ``stride`` elements between its rows."""

    operand: int
    stride: int


@dataclass(frozen=True)
class Plan:
    """``nests``: of the stages. ``links``: between them. ``tiles``: row tiles of a block, of ``height`` rows at most; ``spare``: rows
    before a thread's first one that it may read, but does not use.
    """

    nests: tuple[Nest, ...]
    links: tuple[Link, ...]
    height: int
    tiles: int
    spare: int

    @staticmethod
    def of(spec: KernelSpec, target: Target) -> Plan | str:
        """The plan of a chain whose stages are packed and scheduled, or the reason why there is none."""
        nests = nests_of(spec, target)
        if isinstance(nests, str):
            return nests
        links = links_of(nests)
        if isinstance(links, str):
            return links
        schedules = [stage.schedule for stage in spec.stages]
        if len({s["mr"] for s in schedules}) > 1 or any(s["order"] != "rows" for s in schedules):
            return "the stages do not walk the same tiles of rows"
        height = int(schedules[0]["mr"])
        widest = max(link.stride * ITEM_SIZE[spec.operands[link.operand].dtype] for link in links)
        amx = form(nests[0], target) == "amx"
        tiles = max((TILE_BLOCK_BYTES if amx else BLOCK_BYTES) // (height * widest), 1)
        # Units of tile registers are of one height, and the last one begins among the rows of that before (`contraction.amx`).
        spare = UNIT_ROWS if amx else 0
        return Plan(nests, links, height, tiles, spare)

    def share_elements(self, link: Link) -> int:
        """Of an intermediate in one thread's scratch memory."""
        return (self.spare + self.tiles * self.height) * link.stride

    def scratch_elements(self, link: Link) -> int:
        return MOST_THREADS * self.share_elements(link)


def nests_of(spec: KernelSpec, target: Target) -> tuple[Nest, ...] | str:
    """The stages of a chain as the target's kernels read them, or the reason why one of them cannot be one."""
    found: list[Nest] = []
    for stage in spec.stages:
        nest = cast(stage, target)
        reason = nest if isinstance(nest, str) else _unfit(nest, target)
        if reason is not None:
            return reason
        assert isinstance(nest, Nest)
        found.append(nest)
    if len({form(nest, target) for nest in found}) > 1:
        return "some stages run on tile registers, others on vectors"
    return tuple(found)


def _unfit(nest: Nest, target: Target) -> str | None:
    """Why a contraction cannot be a stage, or None."""
    if any(instr.op == "check" for instr in nest.spec.body):
        return "a stage that may raise an error"
    if nest.spec.body[nest.contract].dtype != "f32":
        return "sums that are not float32"
    if not nest.right.packed:
        return "a factor that is not constant"
    kind = form(nest, target)
    if kind == "codes":
        return "codes become floats once for all rows, in a chain once for each block of them"
    if nest.row is None:
        return "a single row is not shared out among threads"
    if nest.outer or nest.wise or nest.borders or nest.channels or len(nest.reduction) != 1:
        return "only products of rows with a matrix are stages"
    return None


def links_of(nests: tuple[Nest, ...]) -> tuple[Link, ...] | str:
    """The intermediates, or the reason why a stage does not take rows from the one before as they are."""
    found = []
    for before, after in pairwise(nests):
        stores = [i for i, instr in enumerate(before.spec.body) if instr.op == "store"]
        operand = after.left.operand
        if [before.spec.body[i]["operand"] for i in stores] != [operand]:
            return "a stage stores more than the next one reads"
        if sum(i.get("operand") == operand for i in after.spec.body) != 1:
            return "an intermediate is read twice"
        stride, columns = before.stride(stores[0], before.row), before.size(before.column).constant
        alike = (
            stride == after.stride(after.left.load, after.row)
            and before.size(before.row) == after.size(after.row)
            and before.size(before.column) == after.size(after.reduction[0])
            and before.stride(stores[0], before.column).constant == 1
            and after.stride(after.left.load, after.reduction[0]).constant == 1
            and _start(before, stores[0]) == _start(after, after.left.load) == 0
        )
        if not alike or stride.constant is None or columns is None or stride.constant < columns:
            return "a stage reads other rows than the one before stores"
        found.append(Link(operand, stride.constant))
    return tuple(found)


def _start(nest: Nest, instr: int) -> int | None:
    """Where an address starts, if that is a known number."""
    address = nest.address(instr)
    return address.substitute({f"d{i}": 0 for i in range(len(nest.spec.dims))}).constant
