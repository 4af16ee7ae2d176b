"""What a kernel of the sweep is, and how one is written down in a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from effc.bench.models.entry import normal
from effc.bench.systems.system import Passes

#: ``input(seed)``: a fresh random tensor.
Input = Callable[[int], Tensor]


@dataclass(frozen=True)
class Kernel:
    """``name``: ``family/shape``. ``make()``: the module. ``flops``: of a call, where torch's counter counts what need not be done, or
    misses it; ``bytes``: likewise, where codes lie in more bits than they need. ``arithmetic``: dtype of the products, where it is not
    that of the measurement. ``dense``: what eager runs in place of a compressed kernel that torch does not have. ``passes``: what effc is
    told to make of it, as its option.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Input, ...]
    flops: int | None = None
    bytes: int | None = None
    arithmetic: str | None = None
    dense: Kernel | None = None
    passes: Passes = ()

    @property
    def compressed(self) -> bool:
        """Whether it already is, whatever dtype is asked for."""
        return self.arithmetic is not None or self.dense is not None or bool(self.passes)

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


def layer(family: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Kernel:
    """A module of one input, named by the input's shape without a batch of 1."""
    return Kernel(named(family, shape[1:] if shape[0] == 1 else shape), make, normals(shape))


def function(family: str, f: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Kernel:
    """A function of inputs of ``shapes``, named by the first."""
    return Kernel(named(family, shapes[0]), partial(Function, f), normals(*shapes))


def named(family: str, sizes: Iterable[int]) -> str:
    return f"{family}/{'x'.join(map(str, sizes))}"


def normals(*shapes: tuple[int, ...]) -> tuple[Input, ...]:
    """Standard normal float32 inputs."""
    return tuple(partial(_normal, shape) for shape in shapes)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return normal(seed, *shape)
