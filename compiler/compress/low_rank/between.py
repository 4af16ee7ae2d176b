"""What lies between the factors of a layer, which no calibration has seen, as far as the rows tell that calibration has kept."""

from __future__ import annotations

from torch import Tensor

from effc.compiler.ir.calibration import Floats, Statistics

#: By how much of their width, on either side, ranges are wider than those of the rows that were kept: the others reach further, and what
#: is cut off costs more than steps that are twice as long (docs/low_rank.md).
_MARGIN = 0.5


def statistics_of(values: Tensor) -> Statistics:
    """Of ``values``, float32 ``[rows, channels, …]``, all of whose further dimensions are rows too; ``windows`` where there are some."""
    rows = values.movedim(1, -1).flatten(0, -2)
    least, greatest = rows.aminmax(dim=0)
    margin = _MARGIN * (greatest - least)
    nothing = _floats(rows[:0, 0])
    return Statistics(
        least=_floats(least - margin),
        greatest=_floats(greatest + margin),
        mean=_floats(rows.mean(0)),
        mean_square=_floats(rows.square().mean(0)),
        sample=_floats(rows),
        second_moment=None,
        rows=len(rows),
        weight_absmax=nothing,
        weight_mean_square=nothing,
        windows=_floats(values) if values.dim() > 2 else None,
    )


def _floats(values: Tensor) -> Floats:
    found: Floats = values.detach().contiguous().numpy()
    return found
