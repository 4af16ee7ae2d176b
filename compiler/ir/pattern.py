"""``Pattern``: where a sparse weight may hold something other than zero. Plain data.

A pattern lies over a weight ``[out, positions, channels]``: ``positions`` are those of a convolution's window (1 of a linear layer), and
channels stand innermost, as activations do in memory. So neighbours along the sum are neighbouring channels at one position.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from effc.compiler.ir.errors import OptionError

Kind = Literal["unstructured", "n:m", "block", "kernel", "channel"]

#: How patterns are written, for errors.
WRITTEN = (
    "'unstructured', N:M as '2:4', a block of output channels x input channels as '16x1' or '1x16', output channels x a whole window as "
    "'16xkernel', or 'channel'"
)
_PAIR = re.compile(r"([0-9]{1,6})([:x])([0-9]{1,6}|kernel)")


@dataclass(frozen=True)
class Pattern:
    """``"unstructured"``: any element. ``"n:m"``: at most ``n`` of every ``m`` neighbouring channels (Mishra et al., "Accelerating Sparse
    Deep Neural Networks", 2021, for 2:4). ``"block"``: tiles of ``rows`` output channels and ``columns`` input channels that are zeros
    as a whole or stored as a whole (Gray et al., "GPU Kernels for Block-Sparse Weights", 2017). ``"kernel"``: whole windows, between one
    input channel and ``rows`` neighbouring output channels (Xu et al., "SparseByteNN", 2023): a group of outputs sums over fewer input
    channels. ``"channel"``: whole output channels.

    ``rows``: of a block or group, ``columns``: of a block, 1 elsewhere. ``n``, ``m``: 0 where there are none.

    OptionError: numbers that are no pattern, as 0 or 4 of 2.
    """

    kind: Kind
    rows: int = 1
    columns: int = 1
    n: int = 0
    m: int = 0

    def __post_init__(self) -> None:
        if self.kind == "n:m" and not 1 <= self.n <= self.m:
            raise OptionError(f"sparsity pattern '{self}': at least 1 and at most all of a group are kept")
        if self.kind == "kernel" and self.rows < 1:
            raise OptionError(f"sparsity pattern '{self}': a group has 1 output channel or more")
        if self.kind == "block" and not (self.rows >= 1 and self.columns >= 1 and self.rows * self.columns > 1):
            raise OptionError(
                f"sparsity pattern '{self}': a block has 2 elements or more; of single ones it is 'unstructured'"
            )

    @staticmethod
    def unstructured() -> Pattern:
        return Pattern("unstructured")

    @staticmethod
    def channel() -> Pattern:
        return Pattern("channel")

    @staticmethod
    def block(rows: int, columns: int) -> Pattern:
        return Pattern("block", rows=rows, columns=columns)

    @staticmethod
    def kernel(rows: int) -> Pattern:
        return Pattern("kernel", rows=rows)

    @staticmethod
    def of_each(n: int, m: int) -> Pattern:
        """At most ``n`` of each ``m``."""
        return Pattern("n:m", n=n, m=m)

    @staticmethod
    def parse(text: str) -> Pattern:
        """The pattern that ``str`` writes so. OptionError: none is written so."""
        if text in ("unstructured", "channel"):
            return Pattern.channel() if text == "channel" else Pattern.unstructured()
        found = _PAIR.fullmatch(text)
        if found is None:
            raise OptionError(f"sparsity pattern {text!r}: expected {WRITTEN}")
        first = int(found[1])
        if found[3] == "kernel":
            if found[2] == ":":
                raise OptionError(f"sparsity pattern {text!r}: expected {WRITTEN}")
            return Pattern.kernel(first)
        return (Pattern.of_each if found[2] == ":" else Pattern.block)(first, int(found[3]))

    def __str__(self) -> str:
        if self.kind == "n:m":
            return f"{self.n}:{self.m}"
        if self.kind == "kernel":
            return f"{self.rows}xkernel"
        return f"{self.rows}x{self.columns}" if self.kind == "block" else self.kind

    @property
    def sparsity(self) -> float | None:
        """The share of zeros, where the pattern itself says it."""
        return 1 - self.n / self.m if self.kind == "n:m" else None

    def misfit(self, layer: str, shape: Sequence[int]) -> str:
        """Why the pattern cannot lie over the weight ``[out, channels, window…]`` of ``layer``, or ``""``: groups and blocks are whole."""
        out, channels = shape[0], shape[1]
        along = self.m if self.kind == "n:m" else self.columns
        if channels % along:
            what, size = "input", channels
        elif out % self.rows:
            what, size, along = "output", out, self.rows
        else:
            return ""
        return (
            f"{layer}: the sparsity pattern '{self}' does not divide a weight of shape {list(shape)}: "
            f"{size} {what} channels are no multiple of {along}"
        )
