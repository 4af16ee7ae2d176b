"""Sparsity of weights: zeros that are there, or one-shot pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from effc.compiler.ir.compression import Compression, compresses
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.pattern import WRITTEN, Pattern

Method = Literal["magnitude", "wanda", "sparsegpt"]

#: The pattern that prunes nothing, and the one that a plan chooses for each weight.
EXISTING, AUTO = "existing", "auto"
#: How far a share of zeros may be from that of N:M and still mean it.
_SAME = 1e-6


@compresses
@dataclass(frozen=True)
class Sparsify(Compression):
    """``passes={"sparsity": {...}}``: every linear layer and convolution that the options fit.

    ``pattern``: the text of a `Pattern`; or ``"existing"``: weights that hold zeros are stored by the pattern that fits them best, and
    nothing is pruned; or ``"auto"``: ``effc.plan`` tries several, and takes at each weight the one whose kernel saves most time for its
    error. ``sparsity``: the share of each weight that becomes zeros, above 0 and below 1; of N:M it follows. ``method``: which
    elements these are: the smallest (``"magnitude"``), or those that matter least to the output on the activations of ``calibration``,
    without (``"wanda"``) or with a change of the others that makes up for them (``"sparsegpt"``). OptionError: a value that is none, or
    values that do not fit together. With ``pattern="channel"`` channels go from the model with all that is coupled with them; ``sparsity``
    is then the share of the elements of all weights that goes with them. ``keep_channels``: with ``"existing"``, channels that zeros make
    needless stay in the model as zeros; by default they go from it. ``rearrange``: before blocks or groups of windows are pruned, channels
    are put in an order in which these keep more, throughout the model.
    """

    name: ClassVar[str] = "sparsity"
    pattern: str = EXISTING
    sparsity: float | None = None
    method: Method = "magnitude"
    keep_channels: bool = False
    rearrange: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pattern, str):
            raise self.wrong("pattern", f"'{EXISTING}', {WRITTEN}")
        if self.method not in get_args(Method):
            raise self.wrong("method", f"one of {', '.join(get_args(Method))}")
        if self.sparsity is not None and not (isinstance(self.sparsity, float) and 0 < self.sparsity < 1):
            raise self.wrong("sparsity", "the share of zeros, above 0 and below 1")
        if not isinstance(self.keep_channels, bool):
            raise self.wrong("keep_channels", "True or False")
        if not isinstance(self.rearrange, bool):
            raise self.wrong("rearrange", "True or False")
        if self.rearrange and not (self.prunes and not self.planned and self.chosen.rows * self.chosen.columns > 1):
            raise self.refused(
                "'rearrange' puts channels together that one block or group holds: choose such a pattern, as '16x1', '1x16' or "
                "'16xkernel', or leave it out"
            )
        if self.planned:
            self._check_share(None, AUTO)
        elif self.prunes:
            self._check_pruning(self.chosen)
        else:
            self._check_existing()

    @property
    def prunes(self) -> bool:
        return self.pattern != EXISTING

    @property
    def removes(self) -> bool:
        """Whether channels go, with all that is coupled with them."""
        return self.pattern == str(Pattern.channel())

    @property
    def planned(self) -> bool:
        """Whether a plan chooses the pattern."""
        return self.pattern == AUTO

    @property
    def chosen(self) -> Pattern:
        """The pattern, of options that prune."""
        try:
            return Pattern.parse(self.pattern)
        except OptionError as error:
            raise self.refused(f"{error}; or '{EXISTING}', or in a plan '{AUTO}'") from None

    @property
    def share(self) -> float:
        """The share of zeros, of options that prune."""
        found = self.chosen.sparsity if self.sparsity is None else self.sparsity
        assert found is not None, "checked at construction"
        return found

    def _check_existing(self) -> None:
        given = "sparsity" if self.sparsity is not None else "method" if self.method != "magnitude" else ""
        if given:
            raise self.refused(
                f"'{given}' says how to prune, and pattern='{EXISTING}' prunes nothing: choose a 'pattern' ({WRITTEN}), "
                f"or leave '{given}' out"
            )

    def _check_share(self, fixed: float | None, pattern: str) -> None:
        """``fixed``: the share of zeros that ``pattern`` says itself."""
        if self.keep_channels:
            raise self.refused(f"'keep_channels' is about zeros that are there: use it with pattern='{EXISTING}'")
        if fixed is None and self.sparsity is None:
            raise self.refused(f"pattern='{pattern}' needs 'sparsity', the share of zeros, above 0 and below 1")
        if self.method != "magnitude" and self.calibration is None:
            raise self.refused(
                f"method='{self.method}' needs the activations: give 'calibration', made by effc.calibrate"
            )

    def _check_pruning(self, pattern: Pattern) -> None:
        fixed = pattern.sparsity
        self._check_share(fixed, str(pattern))
        if fixed == 0:
            raise self.refused(f"pattern='{pattern}' keeps everything: keep fewer of a group")
        if fixed is not None and self.sparsity is not None and abs(fixed - self.sparsity) > _SAME:
            raise self.refused(
                f"pattern='{pattern}' makes {fixed:g} of a weight zeros, not {self.sparsity:g}: leave 'sparsity' out, "
                "or choose another pattern"
            )
