"""What a model's output shows of each input channel of a layer: gradient times activation, summed over a sample's positions.

Where a channel goes and its mean stays in its place, what `sensitivity` takes gradients of moves by ``Σ g (x - mean)``, to first order,
over the positions of a sample. The mean of its square is Fisher's information of a factor of the channel (Theis et al., "Faster gaze
prediction with dense networks and Fisher pruning", 2018): unlike squares of single gradients it knows what positions, and the outputs that
read the channel, add up to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from effc.compiler.ir.calibration import Floats

#: Of each sample and channel: the sum of gradient times activation, and that of the gradient.
_Sums = tuple[Tensor, Tensor]


class Effects:
    """Sums by sample, which lie along the first dimension of the model's output and of activations."""

    def __init__(self) -> None:
        self._batches: list[tuple[int, dict[int, _Sums]]] = []
        self._unknown: set[int] = set()

    def begin(self, output: Tensor) -> None:
        """Of a batch with this output."""
        self._batches.append((max(len(output), 1) if output.dim() > 1 else 1, {}))

    def add(self, key: int, x: Tensor, gradient: Tensor) -> None:
        """Of a use of the weight ``key``: the activation that met it, and the gradient by that, ``[…, channels]``. Samples are told apart
        where their first dimension is the batch's, or of rows, ``[rows, channels]``, a multiple of it. Of ``[positions, samples, …]`` with
        as many of either, positions are taken for samples: nothing tells them apart.
        """
        samples, sums = self._batches[-1]
        first = x.shape[0] if x.dim() > 1 else 1
        if first % samples if x.dim() <= 2 else first != samples:
            self._unknown.add(key)
            return
        rows, gradients = (t.detach().reshape(samples, -1, x.shape[-1]).float() for t in (x, gradient))
        products, alone = sums.get(key, (0, 0))
        sums[key] = products + (rows * gradients).sum(1), alone + gradients.sum(1)

    def keys(self) -> set[int]:
        """Of the weights of which they are known."""
        return {key for _, sums in self._batches for key in sums} - self._unknown

    def of(self, key: int, mean: Floats) -> Floats:
        """``[samples, channels]``, given the ``mean`` of each channel; 0 where a batch did not meet the weight."""
        found = []
        for samples, sums in self._batches:
            nothing = torch.zeros(samples, len(mean))
            products, alone = sums.get(key, (nothing, nothing))
            found.append(products - alone * torch.from_numpy(mean))
        result: Floats = torch.cat(found).numpy()
        return result
