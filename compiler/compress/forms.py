"""What options say of compression."""

from __future__ import annotations

from collections.abc import Sequence

from effc.compiler.compress.by_plan import ByPlan
from effc.compiler.compress.by_quantization import ByQuantization
from effc.compiler.compress.channels.by_channel import ByChannel, ByNeed, ByOrder, Removal
from effc.compiler.compress.compressor import Step
from effc.compiler.compress.low_rank.by_rank import ByRank
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.filters import FilterChain
from effc.compiler.compress.low_rank.rewrite import FactorRewriter
from effc.compiler.compress.pruning.by_pruning import ByPruning, ByZeros
from effc.compiler.compress.pruning.pruned import PrunedWeight
from effc.compiler.compress.pruning.rewrite import PrunedRewriter
from effc.compiler.compress.quantized import QuantizedWeight
from effc.compiler.compress.quantized_rewrite import QuantizedRewriter
from effc.compiler.compress.thresholds.by_sparsity import BySparsity
from effc.compiler.ir.compression import Compression
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options
from effc.passes.activation_sparsity import SparsifyActivations
from effc.passes.low_rank import LowRank
from effc.passes.quantize import Quantize
from effc.passes.sparsity import Sparsify

#: Kinds of forms and what writes them, in the order in which a graph is rewritten: factors and pruned weights may be quantized.
_STAGES = (
    ((Factors, FilterChain), FactorRewriter),
    (PrunedWeight, PrunedRewriter),
    (QuantizedWeight, QuantizedRewriter),
)


def steps_of(options: Options) -> Sequence[Step]:
    """How a graph is compressed, step by step; none where the model stays exact. OptionError: a rewrite that has none here."""
    asked = options.compressions()
    if options.plan is None:
        by_pass = {type(chosen): chosen for chosen in asked}
        if SparsifyActivations in by_pass and len(by_pass) > 1:
            others = ", ".join(type(c).name for c in asked if not isinstance(c, SparsifyActivations))
            raise by_pass[SparsifyActivations].refused(
                f"it excludes {others}: kernels of weights in another form read them whole; leave one of them out"
            )
        stages = (SparsifyActivations, LowRank, Sparsify, Quantize)
        steps = [step for stage in stages if stage in by_pass for step in _by(by_pass[stage])]
        return sorted(steps, key=lambda step: not isinstance(step, Removal))  # what is left gets other forms
    if asked:
        raise OptionError(
            "options 'plan' and 'passes' exclude each other where both compress: a plan has its passes in it"
        )
    kinds = (({n: w for n, w in options.plan.weights.items() if isinstance(w.form, kind)}, r) for kind, r in _STAGES)
    return [ByPlan(weights, rewriter) for weights, rewriter in kinds if weights]


def _by(chosen: Compression) -> Sequence[Step]:
    if isinstance(chosen, SparsifyActivations):
        return [BySparsity(chosen)]
    if isinstance(chosen, LowRank):
        return [ByRank(chosen)]
    if isinstance(chosen, Sparsify):
        if chosen.planned:
            raise chosen.refused(
                "pattern='auto' chooses by the time that kernels take, which only a plan measures: give these passes to effc.plan, or "
                "name a pattern"
            )
        if chosen.removes:
            return [ByChannel(chosen)]
        if chosen.prunes:
            return [ByOrder(chosen), ByPruning(chosen)] if chosen.rearrange else [ByPruning(chosen)]
        return [ByZeros(chosen)] if chosen.keep_channels else [ByNeed(chosen), ByZeros(chosen)]
    assert isinstance(chosen, Quantize), f"this version of effc cannot compress by '{chosen.name}'"
    return [ByQuantization(chosen)]
