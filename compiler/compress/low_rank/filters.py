"""``FilterChain``: a convolution as several, one behind another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from effc.compiler.compress.form import Form, multiplied
from effc.compiler.compress.inputs import Inputs
from effc.compiler.compress.low_rank.between import statistics_of
from effc.compiler.ir.calibration import Statistics

#: By the number of dimensions of a window.
_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, eq=False)
class FilterChain(Form):
    """``kernels`` in the order in which they are applied, ``[out, in / groups, window…]`` each, of the parameter's dtype; along a dimension
    of the window one of them at most has more than one position. ``shift`` ``[out]``: added to the output; None for weights that were
    factorized without activations.
    """

    kernels: tuple[Tensor, ...]
    groups: int
    shift: Tensor | None

    @property
    def ranks(self) -> tuple[int, ...]:
        """Channels between the kernels, of a group."""
        return tuple(len(kernel) // self.groups for kernel in self.kernels[:-1])

    def parts(self) -> Mapping[str, Tensor]:
        shift = {} if self.shift is None else {"shift": self.shift}
        return {f"kernel{n}": kernel for n, kernel in enumerate(self.kernels)} | shift

    def met(self, statistics: Statistics) -> Mapping[str, Statistics]:
        found = {"kernel0": statistics}
        for n, value in enumerate(self.between(statistics)):
            found[f"kernel{n + 1}"] = statistics_of(value)
        return found

    def between(self, statistics: Statistics) -> Iterator[Tensor]:
        """What meets the kernels behind the first, for calibration's windows: ``[rows, channels, window…]`` each, of the positions that one
        output is summed over. As far as it is known: without windows behind kernels of one position alone; nothing of another model's.
        """
        dims = self.kernels[0].dim() - 2
        if statistics.windows is not None:
            value = torch.from_numpy(statistics.windows)
        else:
            value = torch.from_numpy(statistics.sample)[(..., *[None] * dims)]
        if value.shape[1] != self.groups * self.kernels[0].shape[1]:
            return
        for kernel in self.kernels[:-1]:
            if any(size > there for size, there in zip(kernel.shape[2:], value.shape[2:], strict=True)):
                return
            value = _CONVOLUTIONS[dims](value, kernel.float(), groups=self.groups)
            yield value

    @property
    def kind(self) -> str:
        return f"filters in {self.groups} groups"

    def dense(self) -> Tensor:
        each = [[part.float() for part in kernel.chunk(self.groups)] for kernel in self.kernels]
        return torch.cat([reduce(_composed, group) for group in zip(*each, strict=True)]).flatten(1)

    def outputs(self, inputs: Inputs) -> Tensor:
        """What is added to an output stands at each position in equal parts."""
        dense = self.dense()
        found = multiplied(inputs, dense)
        if self.shift is None:
            return found
        positions = found.shape[1] // len(dense)
        return found + (self.shift.float() / positions).repeat_interleave(positions)


def placed(windows: Sequence[Sequence[int]], values: Sequence[int], elsewhere: int) -> list[list[int]]:
    """Of ``values`` by dimension of a convolution (strides, paddings, dilations) those of kernels with ``windows``: a dimension's stands at
    the kernel that has positions along it, or at the first, which leaves the others less to do; the others have ``elsewhere``.
    """
    owners = [next((n for n, w in enumerate(windows) if w[d] > 1), 0) for d in range(len(windows[0]))]
    return [
        [v if owner == n else elsewhere for v, owner in zip(values, owners, strict=True)] for n in range(len(windows))
    ]


def _composed(first: Tensor, second: Tensor) -> Tensor:
    """The kernel of ``second`` behind ``first``, both of one group."""
    dims = first.dim() - 2
    pairs = torch.einsum("ors,riw->oisw", second.flatten(2), first.flatten(2))
    whole = pairs.reshape(*pairs.shape[:2], *second.shape[2:], *first.shape[2:])
    order = [2 + d + half * dims for d in range(dims) for half in range(2)]
    window = [max(sizes) for sizes in zip(first.shape[2:], second.shape[2:], strict=True)]
    return whole.permute(0, 1, *order).reshape(*pairs.shape[:2], *window)
