"""Networks whose channels are coupled in many ways, and what they compute without some channels."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import effc
from effc.compiler.capture.recording import Recording
from effc.compiler.compress.channels.removed import Removed


class Random(nn.Module):
    """Convolutions, some depthwise or in groups, with norms, residuals, concatenations, pools and halves, as the seed draws them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        g = torch.Generator().manual_seed(seed)
        self.plan: list[tuple[str, int]] = []
        widths = [self._width(g)]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        for _ in range(5):
            kind = ("conv", "residual", "concat", "depthwise", "groups", "pool", "gate", "split")[_draw(g, 8)]
            width, made = widths[-1], self._width(g)
            window = 2 * _draw(g, 2) + 1
            layers: list[nn.Module] = []
            if kind == "conv":
                layers = [
                    nn.Conv2d(width, made, window, padding=window // 2, bias=bool(_draw(g, 2))),
                    nn.BatchNorm2d(made),
                ]
            elif kind == "residual":
                layers = [nn.Conv2d(width, made, 1), nn.Conv2d(made, width, window, padding=window // 2)]
                made = width
            elif kind == "concat":
                layers, made = [nn.Conv2d(width, made, window, padding=window // 2)], made + width
            elif kind == "depthwise":
                layers = [nn.Conv2d(width, 2 * width, 3, padding=1, groups=width), nn.BatchNorm2d(2 * width)]
                made = 2 * width
            elif kind == "groups":
                layers, made = [nn.Conv2d(width, 2 * width, 1, groups=width // 2 if width % 2 == 0 else 1)], 2 * width
            elif kind == "gate":
                layers, made = [nn.Linear(width, made), nn.Linear(made, width)], width
            elif kind == "split":
                layers = [nn.Conv2d(width, 2 * made, 1)]
            else:
                made = width
            self.plan.append((kind, len(layers)))
            self.layers.extend(layers)
            widths.append(made)
        self.head = nn.Linear(widths[-1] * (4 if _draw(g, 2) else 1), 7)
        self.flat = self.head.in_features != widths[-1]
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5, generator=g)  # type: ignore[arg-type]
                for tensor in (module.bias, module.running_mean):
                    nn.init.normal_(tensor, generator=g)  # type: ignore[arg-type]

    @staticmethod
    def _width(g: torch.Generator) -> int:
        return (6, 8, 16, 20, 24)[_draw(g, 5)]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        layers = iter(self.layers)
        for kind, count in self.plan:
            mine = [next(layers) for _ in range(count)]
            if kind == "residual":
                x = x + mine[1](F.relu6(mine[0](x)))
            elif kind == "concat":
                x = torch.cat([x, torch.sigmoid(mine[0](x))], 1)
            elif kind == "gate":
                x = x * torch.sigmoid(mine[1](F.silu(mine[0](x.mean((2, 3))))))[:, :, None, None]
            elif kind == "split":
                one, other = mine[0](x).chunk(2, 1)
                x = one * torch.tanh(other)
            elif kind == "pool":
                x = F.max_pool2d(x, 3, 1, 1)
            else:
                for layer in mine:
                    x = layer(x)
                x = F.relu(x)
        x = F.adaptive_avg_pool2d(x, 2 if self.flat else 1).flatten(1)
        found: Tensor = self.head(x)
        return found


def _draw(g: torch.Generator, below: int) -> int:
    return int(torch.randint(0, below, (1,), generator=g))


def removed(recording: Recording) -> Removed:
    """Of the one graph."""
    (compressed,) = recording.compressed
    (found,) = compressed.removed
    assert isinstance(found, Removed)
    return found


def masked(model: nn.Module, found: Removed, calibration: effc.Calibration | None = None) -> nn.Module:
    """The model in float64, of all its shapes, whose layers do not see the channels that went; of a ``calibration`` their mean instead."""
    model = copy.deepcopy(model).double()
    for name, met in found.met.items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            continue
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        gone = torch.from_numpy(np.logical_not(met))
        with torch.no_grad():
            if calibration is not None:
                lost = layer.weight[:, gone].reshape(len(layer.weight), int(gone.sum()), -1).sum(2)
                mean = torch.from_numpy(calibration.sites[name].mean).double()
                layer.bias = nn.Parameter(lost @ mean[gone] + (0 if layer.bias is None else layer.bias))
            layer.weight[:, gone] = 0
    return model
