"""How far a model's outputs are from the reference: the metrics that a budget may name."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from effc.compiler.ir.errors import InputError
from effc.runtime.structure import flatten

#: ``metric(references, outputs, batches)`` over all batches: 0 where nothing differs; NaN where outputs are.
Metric = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], float]
UserMetric = Callable[[Any, Any, Any], float]


@dataclass(frozen=True)
class Error:
    """A metric over some batches. ``margin``: by which its mean over other batches of their source may differ, with a confidence of 95 %,
    by Student's t. None of one batch, NaN where the metric of one is not finite.
    """

    value: float
    margin: float | None


def measured(
    chosen: str | UserMetric, references: Sequence[Any], outputs: Sequence[Any], batches: Sequence[Any]
) -> Error:
    """The metric of a name, or a user's own, which is called once a batch."""
    metric = metric_of(chosen)
    each = [metric([r], [y], [b]) for r, y, b in zip(references, outputs, batches, strict=True)]
    whole = metric(references, outputs, batches) if isinstance(chosen, str) else sum(each) / len(each)
    return Error(whole, None if len(each) == 1 else _margin(each))


def _margin(each: Sequence[float]) -> float:
    from scipy.special import stdtrit

    if not all(map(math.isfinite, each)):
        return math.nan
    return float(stdtrit(len(each) - 1, 0.975)) * statistics.stdev(each) / math.sqrt(len(each))


def metric_of(chosen: str | UserMetric) -> Metric:
    """The metric of a name; of a user's own ``(reference_outputs, outputs, batch) -> float`` the mean over the batches."""
    return _NAMED[chosen] if isinstance(chosen, str) else _mean_of(chosen)


def metric_name(chosen: str | UserMetric) -> str:
    return chosen if isinstance(chosen, str) else getattr(chosen, "__qualname__", type(chosen).__name__)


def relative_l2(references: Sequence[Any], outputs: Sequence[Any], batches: Sequence[Any]) -> float:
    """``||y - r|| / ||r||`` over all floating outputs of all batches, summed in float64; strict: bf16 alone costs some 1 %."""
    difference, norm = 0.0, 0.0
    for reference, output in zip(references, outputs, strict=True):
        for r, y in _pairs(reference, output):
            difference += float((y.double() - r.double()).square().sum())
            norm += float(r.double().square().sum())
    return math.sqrt(difference / norm) if norm else math.sqrt(difference)


def top1_disagreement(references: Sequence[Any], outputs: Sequence[Any], batches: Sequence[Any]) -> float:
    """The share of rows of the logits (last dimension: classes) whose largest element is another."""
    differing, rows = 0, 0
    for reference, output in zip(references, outputs, strict=True):
        r, y = _logits("top1_disagreement", reference, output)
        if bool(y.isnan().any()):
            return math.nan
        differing += int((r.argmax(-1) != y.argmax(-1)).sum())
        rows += r[..., 0].numel()
    return differing / rows


def kl(references: Sequence[Any], outputs: Sequence[Any], batches: Sequence[Any]) -> float:
    """Mean KL divergence of the output's distribution from the reference's, in nats a row of the logits."""
    total, rows = 0.0, 0
    for reference, output in zip(references, outputs, strict=True):
        r, y = (F.log_softmax(t.double(), -1) for t in _logits("kl", reference, output))
        total += float(F.kl_div(y, r, reduction="sum", log_target=True))
        rows += r[..., 0].numel()
    return total / rows


def perplexity(references: Sequence[Any], outputs: Sequence[Any], batches: Sequence[Any]) -> float:
    """Relative rise of the perplexity of a causal language model on the batches' own tokens.

    The first output [batch, length, vocabulary] predicts, at each position, the next of the tokens [batch, length], which are
    the first integer tensor of the batch.
    """
    losses = [0.0, 0.0]
    count = 0
    for reference, output, batch in zip(references, outputs, batches, strict=True):
        pair = _logits("perplexity", reference, output)
        tokens = next((t for t in flatten(batch)[1] if t.dtype in (torch.int64, torch.int32)), None)
        if tokens is None or tokens.shape != pair[0].shape[:-1] or tokens.shape[-1] < 2:
            raise InputError(
                "metric 'perplexity' needs batches of tokens [batch, length >= 2] and logits [batch, length, vocabulary]; "
                f"the logits are {list(pair[0].shape)}, the tokens {'absent' if tokens is None else list(tokens.shape)}"
            )
        target = tokens[..., 1:].reshape(-1).long()
        for i, logits in enumerate(pair):
            flat = logits[..., :-1, :].reshape(len(target), -1).double()
            losses[i] += float(F.cross_entropy(flat, target, reduction="sum"))
        count += len(target)
    return math.expm1((losses[1] - losses[0]) / count)


_NAMED: Mapping[str, Metric] = {f.__name__: f for f in (relative_l2, top1_disagreement, kl, perplexity)}


def _mean_of(user: UserMetric) -> Metric:
    def mean(references: Sequence[Any], outputs: Sequence[Any], batches: Sequence[Any]) -> float:
        values = [float(user(r, y, b)) for r, y, b in zip(references, outputs, batches, strict=True)]
        return sum(values) / len(values)

    return mean


def _pairs(reference: Any, output: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    expected, found = flatten(reference)[1], flatten(output)[1]
    if [r.shape for r in expected] != [y.shape for y in found]:
        raise InputError("the model gives outputs of other shapes than in the calibration; calibrate it again")
    return [(r, y) for r, y in zip(expected, found, strict=True) if r.is_floating_point()]


def _logits(name: str, reference: Any, output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    pair = next(((r, y) for r, y in _pairs(reference, output) if r.ndim >= 1 and r.shape[-1] > 1), None)
    if pair is None:
        raise InputError(f"metric '{name}' needs an output whose last dimension are classes; this model has none")
    return pair
