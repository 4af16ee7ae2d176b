"""The compressions that a plan tries, and how it names them.

A variant is the model compressed as a whole by one pass, or by one whose parts another one stores: factors in bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from math import prod
from typing import Any

from effc.compiler.compress.pruning.detect import best_fit
from effc.compiler.ir.compression import Compression, compressions
from effc.compiler.ir.options import Options
from effc.compiler.ir.pattern import Pattern
from effc.passes.low_rank import LowRank
from effc.passes.quantize import Quantize
from effc.passes.sparsity import Sparsify
from effc.planning.trial import Trial

#: Patterns that a trial prunes by, and their share of zeros.
_PATTERNS: Sequence[tuple[str, float | None]] = (("16x1", 0.5), ("2:4", None))
#: Patterns among which a plan chooses for each weight at a share of zeros that is asked for.
_CHOICE = ("unstructured", "4x1", "16x1", "1x16", "16xkernel")
#: Passes that change a model one after the other.
Variant = tuple[Compression, ...]
#: How one candidate is told from another of the same pass.
Pairs = tuple[tuple[str, Any], ...]


def offered(options: Options, trial: Trial) -> list[Compression]:
    """The variants worth a trial: of each pass what ``passes`` fixes, none where it switches the pass off, else some of each kind."""
    found: list[Compression] = []
    for name, variants in _worth_a_trial(trial).items():
        choice = dict(options.passes).get(name, True)
        if isinstance(choice, tuple):
            fixed = compressions()[name](**{**dict(choice), "calibration": trial.calibration})
            found += _weight_by_weight(fixed, trial)
        elif choice is not False:
            found += variants
    return found


def _worth_a_trial(trial: Trial) -> Mapping[str, list[Compression]]:
    """By pass, where options say nothing."""
    calibration = trial.calibration
    zeros = tuple(name for name, p in trial.model.named_parameters() if not bool(p.any()))
    pruned = Sparsify("2:4", None, "sparsegpt", calibration=calibration, skip=zeros)
    held = any(p.dim() > 1 and best_fit(p) is not None for p in trial.model.parameters())
    return {
        Sparsify.name: [Sparsify(keep_channels=True)] if held else _by_patterns(trial, _PATTERNS, pruned),
        Quantize.name: [
            Quantize("int8"),
            Quantize("int8", activations="token", smoothing="smoothquant", calibration=calibration),
            Quantize("int8", activations="tensor", calibration=calibration),
            Quantize("int4", smoothing="awq", rounding="gptq", calibration=calibration),
        ],
        LowRank.name: [
            LowRank(rank_ratio=ratio, method="output", calibration=calibration, skip=zeros) for ratio in (0.375, 0.25)
        ],
    }


def _weight_by_weight(fixed: Compression, trial: Trial) -> list[Compression]:
    """As a plan may decide for each weight alone. OptionError: what it cannot."""
    if isinstance(fixed, Sparsify) and fixed.planned:
        wanted = [(pattern, fixed.sparsity) for pattern in _CHOICE]
        return _by_patterns(trial, wanted, fixed)
    if isinstance(fixed, Sparsify) and fixed.rearrange:
        raise fixed.refused(
            "a plan decides for each weight alone, and channels are rearranged in all weights that are coupled: leave 'rearrange' out, or "
            "compile with these options instead of a plan"
        )
    if not isinstance(fixed, Sparsify) or (fixed.prunes and not fixed.removes):
        return [fixed]
    if fixed.removes:
        raise fixed.refused(
            "a plan decides for each weight alone, and channels go from all weights that are coupled: compile with these options instead "
            "of a plan, or choose another pattern"
        )
    return [replace(fixed, keep_channels=True)]


def _by_patterns(trial: Trial, wanted: Sequence[tuple[str, float | None]], like: Sparsify) -> list[Compression]:
    """By each pattern that divides a weight, of the weights that it divides, whole windows where there are any; all else is as ``like``."""
    weights = {name: p.shape for name, p in trial.model.named_parameters() if p.dim() > 1 and not like.skips(name)}
    found: list[Compression] = []
    for pattern, share in wanted:
        parsed = Pattern.parse(pattern)
        undivided = [
            name
            for name, shape in weights.items()
            if parsed.misfit(name, shape) or (parsed.kind == "kernel" and prod(shape[2:]) == 1)
        ]
        if len(undivided) < len(weights):
            found.append(replace(like, pattern=pattern, sparsity=share, skip=(*like.skip, *undivided)))
    return found


def draft(variant: Compression) -> Compression:
    """Of the same kernels, or nearly, by algorithms that look at nothing but the weights; itself where it takes no long time."""
    if isinstance(variant, Quantize) and variant.rounding == "gptq":
        return replace(variant, rounding="nearest", smoothing="none")
    if isinstance(variant, Sparsify) and variant.method == "sparsegpt":
        return replace(variant, method="magnitude")
    return variant


def only(variant: Compression, weights: Collection[str], trial: Trial) -> Compression:
    """That leaves all but these weights."""
    names = (name for name, _ in trial.model.named_parameters(remove_duplicate=False))
    return replace(variant, skip=(*variant.skip, *(name for name in names if name not in weights)))


def named(variant: Variant) -> str:
    """The passes, in the order in which they change a weight."""
    return " then ".join(one.name for one in variant)


def pairs_of(variant: Variant) -> Pairs:
    """The options by which a plan names a variant, in plain data; with their pass where there are several."""
    skipped = ("calibration", "skip")
    several = len(variant) > 1
    return tuple(
        sorted(
            (f"{one.name}.{f.name}" if several else f.name, getattr(one, f.name))
            for one in variant
            for f in fields(one)
            if f.name not in skipped
        )
    )


def passes_of(options: Options, variant: Variant) -> dict[str, Any]:
    kept = {name: choice for name, choice in options.arguments()["passes"].items() if name not in compressions()}
    return {**kept, **{one.name: {f.name: getattr(one, f.name) for f in fields(one)} for one in variant}}
