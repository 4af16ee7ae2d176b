"""The ``attention`` template: ``softmax(scale * q k^T + mask) v`` with an online softmax, so that scores never leave the processor.

The spec's layout is that of the CPU's template (``compiler/codegen/cpu/attention/``). A program takes a block of rows against all keys
that they may see. Rows are queries of one head; where queries are few, rows are the queries of all heads that share a head of k and v,
which is then read once for all, and programs divide the keys, whose results a second kernel joins. Keys that no border or diagonal touches
come without masks.

Sums and softmax are in f32, by powers of two; the probabilities are rounded to v's dtype before their product with it.

Schedule: ``bm`` rows, ``bn`` keys, ``split`` parts of the keys, ``warps``, ``stages``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from effc.compiler.codegen.gpu.launch import Emitted, Launch, blocks, kernel, power_of_two
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec, Schedule

#: Channels beyond which a block of rows, with its results, does not fit registers and shared memory.
_MOST_CHANNELS = 256
#: Rows up to which heads that share k and v are taken together.
_FEW_ROWS = 64
#: The least keys that are worth a program of their own.
_LEAST_PART = 256
_MOST_PARTS = 32


@dataclass(frozen=True)
class Plan:
    """``heads``: how many heads of q the rows of a program span, 1 or all that share one of k and v. ``bd``, ``be``: channels of q and k,
    of v and the result, as powers of two. ``chunk``: channels of q and k that one product takes: without tensor cores all that it
    takes lies in registers.
    """

    spec: KernelSpec
    heads: int
    bm: int
    bn: int
    bd: int
    be: int
    chunk: int
    split: int
    warps: int
    stages: int

    @property
    def rows(self) -> Expr:
        """Rows of one program's heads."""
        return self.spec.dims[2].size * self.heads

    @property
    def head_blocks(self) -> Expr:
        """Groups of heads, ``heads`` each."""
        return self.spec.dims[1].size // self.heads

    @property
    def programs(self) -> Expr:
        return blocks(self.rows, self.bm) * self.head_blocks * self.spec.dims[0].size * self.split

    @property
    def all_rows(self) -> Expr:
        return self.spec.dims[0].size * self.spec.dims[1].size * self.spec.dims[2].size


def supports(spec: KernelSpec) -> str | None:
    """None where `emit` makes kernels of ``spec``, else the reason why it does not."""
    if len(spec.dims) != 6:
        return f"attention has six dimensions, this one {len(spec.dims)}"
    channels = [spec.dims[i].size.constant for i in (4, 5)]
    if None in channels:
        return "the number of channels is not known"
    if max(c or 0 for c in channels) > _MOST_CHANNELS:
        return f"more than {_MOST_CHANNELS} channels"
    dtypes = {o.dtype for o in spec.operands[:3]}
    if len(dtypes) != 1 or not dtypes <= {"f32", "bf16", "f16"}:
        return f"attention in {' and '.join(sorted(dtypes))}; there is f32, bf16 and f16"
    return None


def plan(spec: KernelSpec, target: GpuTarget) -> Plan:
    """How to run ``spec``; its own schedule where it has one."""
    group, queries = int(spec.get("group", 1)), spec.dims[2].size
    together = queries.constant is not None and queries.constant * group <= _FEW_ROWS
    heads = group if together else 1
    size = ITEM_SIZE[spec.operands[0].dtype]
    channels = max(spec.dims[4].size.constant or 0, spec.dims[5].size.constant or 0)
    bd, be = (power_of_two(spec.dims[i].size, 16, _MOST_CHANNELS) for i in (4, 5))
    wide = 128 if channels <= 128 else 64 if target.has_wgmma else 32
    large = wide if size == 2 else 32 if channels <= 64 else 16
    bm = power_of_two(queries * heads, 16, large)
    bn = power_of_two(
        spec.dims[3].size, 16, 64 if size == 2 and channels <= 128 else 32 if size == 2 or target.tf32 else 16
    )
    chunk = bd if size == 2 or target.tf32 else 16
    found = Plan(spec, heads, bm, bn, bd, be, chunk, 1, 8 if bm >= 128 else 4, 2)
    wanted = spec.schedule
    found = replace(
        found,
        bm=int(wanted.get("bm", found.bm)),
        bn=int(wanted.get("bn", found.bn)),
        warps=int(wanted.get("warps", found.warps)),
        stages=int(wanted.get("stages", found.stages)),
    )
    # What joins parts writes no logsumexp.
    split = 1 if spec.get("lse") is not None else int(wanted.get("split", _parts(found, target)))
    return replace(found, split=split)


def candidates(spec: KernelSpec, target: GpuTarget) -> list[Schedule]:
    """The default first, then other blocks of rows and keys."""
    first = plan(spec, target)
    offered = [(first.bm, first.bn, first.split, first.stages, first.warps)]
    for bm, bn in ((64, 64), (128, 64), (128, 128), (64, 32), (16, 64), (16, 128)):
        if bm <= max(first.bm, 16) and bn <= max(first.bn, 16) * 2:
            offered.append((bm, bn, first.split, first.stages, 8 if bm >= 128 else 4))
    names = ("bm", "bn", "split", "stages", "warps")
    return [Schedule(tuple(zip(names, o, strict=True))) for o in dict.fromkeys(offered)]


def emit(spec: KernelSpec, target: GpuTarget, name: str, *, aligned: bool = True) -> Emitted:
    """One launch, or two where the keys are split; LoweringError where `supports` says no."""
    from effc.compiler.codegen.gpu import loops
    from effc.compiler.codegen.gpu.attention_kernel import Attention
    from effc.compiler.codegen.gpu.attention_parts import joining, scratch_of

    reason = supports(spec)
    if reason is not None:
        raise LoweringError(f"this attention is not supported: {reason}")
    found = plan(spec, target)
    text = kernel(spec, name, lambda b, given: Attention(b, found, target, given).emit(), aligned=aligned)
    first = Launch(name, text, found.programs, found.warps, found.stages)
    if found.split == 1:
        return Emitted((first,))
    second = loops.emit(joining(found), target, f"{name}_join", aligned=aligned, scratch=True)
    return Emitted((first, *second.launches), scratch_of(found), second.numbers)


def _parts(plan: Plan, target: GpuTarget) -> int:
    """Into how many parts keys are split: until all processors have work, where rows are few."""
    programs, rows, keys = plan.programs.constant, plan.rows.constant, plan.spec.dims[3].size.constant
    if programs is None or rows is None or keys is None or rows > plan.bm or programs * 2 > target.processors:
        return 1
    most = min(target.processors // programs, keys // _LEAST_PART, _MOST_PARTS)
    return 1 << int(math.log2(most)) if most > 1 else 1
