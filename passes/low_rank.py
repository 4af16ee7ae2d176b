"""Low-rank factorization of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from effc.compiler.ir.compression import Compression, compresses

Method = Literal["svd", "output"]

#: Of the parameters of the weights that could be factorized, where nothing is said.
_KEPT = 0.75


@compresses
@dataclass(frozen=True)
class LowRank(Compression):
    """``passes={"low_rank": {...}}``: weights ``[out, in]`` of linear layers and embeddings as products ``[out, rank] @ [rank, in]``, and
    convolutions as two or three: those of one position as such a product, others by Tucker-2 (``[second, first, window…]`` between
    ``[first, in]`` and ``[out, second]``) or as one-way filters (``[rank, in, rows, 1]``, ``[out, rank, 1, columns]``); groups alike.

    At most one of: ``rank``, of every weight; ``rank_ratio``, as a share of a weight's lesser dimension; ``parameters``, the share of all
    their parameters that is kept, ranks chosen for the least error of outputs. By the first two, windows become Tucker-2: both its ranks
    are ``rank``, at most the channels of their side, or ``rank_ratio`` of these. A weight stays where factors of its rank would hold as
    many numbers as itself. ``method``: ``"svd"`` looks at weights alone; ``"output"`` at what layers give for the calibration, which it
    needs, and at how much the model's output shows of their errors, where the calibration holds sensitivities.
    OptionError: a value that is none, or a calibration that is missing.
    """

    name: ClassVar[str] = "low_rank"
    rank: int | None = None
    rank_ratio: float | None = None
    parameters: float | None = None
    method: Method = "svd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1):
            raise self.wrong("rank", "a whole number of at least 1")
        for name in ("rank_ratio", "parameters"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1
            ):
                raise self.wrong(name, "a number between 0 and 1")
        if self.method not in get_args(Method):
            raise self.wrong("method", f"one of {', '.join(get_args(Method))}")
        given = [name for name in ("rank", "rank_ratio", "parameters") if getattr(self, name) is not None]
        if len(given) > 1:
            raise self.refused(f"'{given[0]}' and '{given[1]}' exclude each other: each of them decides on ranks")
        if self.method == "output" and self.calibration is None:
            raise self.refused("method='output' needs the activations: give 'calibration', made by effc.calibrate")

    @property
    def kept(self) -> float:
        """``parameters``, or the default of it."""
        return _KEPT if self.parameters is None else self.parameters
