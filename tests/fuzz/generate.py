"""Random programs. A drawn statement is run at once, at every size, and kept where torch takes it and the values stay
tame.
"""

from __future__ import annotations

import math
import warnings
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import LAYOUTS, tensor
from .ops import WEIGHTS, Chooser, Draw, NoOperand
from .program import Input, Program, Statement

#: Values beyond this are not kept: they would overflow later in bfloat16's or float32's place, and say nothing.
_LARGEST = 1e3
_MOST_ELEMENTS = 20_000
#: Steps at which a dynamic program runs; at step s the sizes are n = 5 + 2s, m = 8 + 3s.
STEPS = (0, 1, 3)
_DTYPES = (
    *(torch.float32,) * 8,
    *(torch.bfloat16, torch.int64) * 2,
    *(torch.float64, torch.int32, torch.bool),
)
_SIZES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 33, 64)


def generate(seed: int, dynamic: bool = False) -> Program:
    """The program of ``seed``: 1-4 inputs, 2-12 statements, 1-5 results; the same in every process."""
    rng = Random(seed * 2 + dynamic)
    inputs = _inputs(rng, dynamic)
    state = _State(seed, inputs, dynamic)
    wanted = rng.randint(2, 12)
    for _ in range(wanted * 8):
        if len(state.statements) == wanted:
            break
        (op,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        try:
            state.try_add(op(Chooser(rng, state.environments[0], state.exact, dynamic)))
        except NoOperand:
            continue
    return Program(seed, inputs, tuple(state.statements), _results(rng, state))


def _sizes(step: int) -> dict[str, int]:
    return {"n": 5 + 2 * step, "m": 8 + 3 * step}


def _inputs(rng: Random, dynamic: bool) -> tuple[Input, ...]:
    base = [rng.choice(_SIZES) for _ in range(3)]
    special, empty = rng.random() < 0.1, rng.random() < 0.05

    def size() -> str:
        if dynamic and rng.random() < 0.6:
            return rng.choice("nm")
        if empty and rng.random() < 0.3:
            return "0"
        return str(rng.choice(base) if rng.random() < 0.8 else 1)

    largest = _sizes(STEPS[-1])
    found = []
    for i in range(rng.randint(1, 4)):
        rank = rng.choice((0, 1, 2, 2, 2, 3, 3, 4, 4))
        sizes = [size() for _ in range(rank)]
        while math.prod(largest[s] if s in largest else int(s) for s in sizes) > _MOST_ELEMENTS:
            del sizes[0]
        shape = f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
        layout = rng.choice(LAYOUTS) if rng.random() < 0.5 else "contiguous"
        found.append(Input(f"x{i}", rng.choice(_DTYPES), shape, layout, special))
    return tuple(found)


def _results(rng: Random, state: _State) -> tuple[str, ...]:
    """What nothing consumed, and sometimes an input, a view, or the same twice."""
    used = set().union(*(s.names() for s in state.statements)) if state.statements else set()
    made = [s.target for s in state.statements if s.target]
    ends = [name for name in made if name not in used] or list(state.environments[0])[-1:]
    results = ends[-4:]
    if rng.random() < 0.2:
        results.append(rng.choice(list(state.environments[0])))
    return tuple(results)


class _State:
    """The statements so far, and the variables' values at each size."""

    def __init__(self, seed: int, inputs: tuple[Input, ...], dynamic: bool) -> None:
        self.statements: list[Statement] = []
        self._seed, self._inputs, self._steps = seed, inputs, STEPS if dynamic else STEPS[:1]
        self._special = any(x.special for x in inputs)
        self._tainted: set[int] = set()  # storages that hold a value with a rounding error
        self._restart()

    @property
    def exact(self) -> dict[str, bool]:
        return {n: t.untyped_storage()._cdata not in self._tainted for n, t in self.environments[0].items()}

    def try_add(self, draw: Draw) -> None:
        """Keep the statement if it runs at every size and its values are tame; else forget it."""
        target = "" if draw.update else f"v{len(self.statements)}"
        statement = Statement(draw.text, target)
        names = statement.names()
        exact = draw.exact and all(self.exact[n] for n in names if n in self.exact)
        if self._execute(statement):
            self.statements.append(statement)
            changed = self.environments[0][draw.update or target]
            if not exact and changed.is_floating_point():
                self._tainted.add(changed.untyped_storage()._cdata)
        elif draw.update:  # it may have written at one size before it failed at another
            tainted = [n for n, e in self.exact.items() if not e]
            self._restart()
            for kept in self.statements:
                self._execute(kept)
            self._tainted = {self.environments[0][n].untyped_storage()._cdata for n in tainted}

    def _restart(self) -> None:
        self.environments: list[dict[str, Tensor]] = []
        for step in self._steps:
            sizes = _sizes(step)
            self.environments.append(
                {
                    x.name: tensor(self._seed * 100 + i, x.dtype, eval(x.shape, {}, sizes), x.layout, x.special)
                    for i, x in enumerate(self._inputs)
                }
            )

    def _execute(self, statement: Statement) -> bool:
        code = compile(str(statement), "<fuzz>", "exec")
        results = []
        for environment in self.environments:
            scope: dict[str, Any] = {"torch": torch, "F": F, **environment}
            try:
                with warnings.catch_warnings(), torch.no_grad():
                    warnings.simplefilter("ignore")
                    exec(code, scope)
            except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
                return False
            made = {n: scope[n] for n in (*environment, *([statement.target] if statement.target else []))}
            if not all(isinstance(t, Tensor) and self._tame(t) for t in made.values()):
                return False
            results.append(made)
        self.environments = results
        return True

    def _tame(self, t: Tensor) -> bool:
        if t.numel() > _MOST_ELEMENTS or t.ndim > 6 or t.is_complex():
            return False
        if not t.is_floating_point():
            return True
        finite = t.isfinite()
        return bool((self._special or finite.all()) and (t[finite].abs() <= _LARGEST).all())
