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

#: Quantile of the upper end of an interval of 95 %.
_UPPER = 0.975

#: ``metric(references, outputs, batches)`` over all batches: 0 where nothing differs; NaN where outputs are.
Metric = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], float]
UserMetric = Callable[[Any, Any, Any], float]


@dataclass(frozen=True)
class Error:
    """A metric over some batches. ``margin``: by which its mean over other batches of their source may differ, with a confidence of 95 %;
    None where nothing tells, NaN where the metric of one is not finite.
    """

    value: float
    margin: float | None

    @property
    def bound(self) -> float:
        """What the mean over other batches is at most, as far as the margin tells."""
        return self.value + (self.margin or 0.0)


def measured(
    chosen: str | UserMetric, references: Sequence[Any], outputs: Sequence[Any], batches: Sequence[Any], seen: int = 0
) -> Error:
    """The metric of a name, or a user's own, which is called once a batch; of all batches but the first ``seen``, which the margin alone
    looks at.

    The margin is Student's t, for batches of one spread about two means, that of those ``seen`` and that of the others. Of a share of rows
    it is at least that of as many independent ones: none that differs, of few, says little.
    """
    metric = metric_of(chosen)
    each = [metric([r], [y], [b]) for r, y, b in zip(references, outputs, batches, strict=True)]
    others = references[seen:], outputs[seen:], batches[seen:]
    whole = metric(*others) if isinstance(chosen, str) else statistics.fmean(each[seen:])
    margin = _margin(each[:seen], each[seen:])
    if chosen == top1_disagreement.__name__:
        margin = max(margin or 0.0, _share_margin(whole, _rows(*others[:2])))
    return Error(whole, margin)


def _margin(seen: Sequence[float], others: Sequence[float]) -> float | None:
    """Of the mean of ``others``."""
    from scipy.special import stdtrit

    if not all(map(math.isfinite, (*seen, *others))):
        return math.nan
    parts = [part for part in (seen, others) if part]
    freedom = sum(len(part) - 1 for part in parts)
    if not freedom:
        return None
    squares = sum((value - statistics.fmean(part)) ** 2 for part in parts for value in part)
    return float(stdtrit(freedom, _UPPER)) * math.sqrt(squares / freedom / len(others))


def _share_margin(share: float, rows: int) -> float:
    """Of a share of independent ``rows`` (Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the
    Binomial", 1934).
    """
    from scipy.special import betaincinv

    if not math.isfinite(share):
        return math.nan
    differing = round(share * rows)
    return 0.0 if differing == rows else float(betaincinv(differing + 1, rows - differing, _UPPER)) - share


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


def _rows(references: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Of all logits."""
    pairs = (_logits("top1_disagreement", r, y) for r, y in zip(references, outputs, strict=True))
    return sum(reference[..., 0].numel() for reference, _ in pairs)


def _logits(name: str, reference: Any, output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    pair = next(((r, y) for r, y in _pairs(reference, output) if r.ndim >= 1 and r.shape[-1] > 1), None)
    if pair is None:
        raise InputError(f"metric '{name}' needs an output whose last dimension are classes; this model has none")
    return pair
