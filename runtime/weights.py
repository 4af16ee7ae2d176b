"""Derived weights: computed from the parameters once, and anew when a `Guard` or an optimizer says that these changed.

Any torch optimizer's step counts as a change: the fused ones write without a new version.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Protocol

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from effc.compiler.ir.program import Derived, Joined, Program
from effc.compiler.ir.slots import Layout
from effc.runtime.derive import derive, join
from effc.runtime.guard import Guard, Unchanged
from effc.runtime.pages import Pages
from effc.runtime.shared_weights import Sources, after_fork, forget_shared, shared
from effc.runtime.tensor_layout import tensor_layout

#: Sets of parameters that one program keeps weights for: a deep model repeats a block that is compiled once.
_KEPT_STATES = 256


class Prepare(Protocol):
    """The executable of ``Program.prepare``."""

    program: Program

    def __call__(self, symbols: Sequence[int], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]: ...

    def trim(self) -> None: ...


@dataclass(eq=False)
class State:
    """Derived weights of one set of parameters.

    ``pointers``: (slot, address) of the parameters and of the derived tensors. ``serial``: a number that no other state has.
    """

    guard: Guard
    pointers: list[tuple[int, int]]
    derived: list[torch.Tensor]
    serial: int = field(default_factory=itertools.count(1).__next__)


class Weights:
    """The derived weights of a program, for each set of parameters that it is called with."""

    def __init__(self, program: Program, prepare: Prepare | None, unchanged: Unchanged) -> None:
        self.program, self._prepare = program, prepare
        self.inputs = [i for i, given in enumerate(program.inputs) if given.param]
        self._is_source = self._find_sources()
        self._layout = Layout.of(program)
        self._unchanged = unchanged
        single = itemgetter(*self.inputs)
        self._parameters = single if len(self.inputs) > 1 else lambda tensors: (single(tensors),)
        self._lock = threading.Lock()
        self._states: dict[int, State] = {}  # by the identity of the first parameter: models may share one program
        self.derivations = 0
        _watch_optimizers()
        _ALL.add(self)

    def _find_sources(self) -> list[bool]:
        """For each parameter, whether something is derived from it."""
        origins = (origin for d in self.program.derived for origin in self.program.origins(d.source))
        read = {index for kind, index in origins if kind == "input"}
        if self._prepare is not None:
            names = {given.param for given in self._prepare.program.inputs}
            read |= {i for i in self.inputs if self.program.inputs[i].param in names}
        if not self.inputs or not read <= set(self.inputs):
            raise ValueError("a weight is derived from an input that is no parameter")
        return [i in read for i in self.inputs]

    def __len__(self) -> int:
        """Sets of living parameters with derived weights."""
        return sum(state.guard.alive() for state in list(self._states.values()))

    @property
    def note(self) -> str:
        """For the report: empty, or why comparing the weights is slow."""
        if tensor_layout() is None:
            return (
                "the memory layout of torch's tensors was not recognised: every call spends some 2 µs on each parameter"
            )
        return ""

    def current(self, tensors: Sequence[torch.Tensor]) -> State:
        """The state for the parameters among ``tensors``, derived anew where any source changed."""
        parameters = self._parameters(tensors)
        state = self._states.get(id(parameters[0]))
        if state is not None and state.guard.holds(parameters):
            return state
        with self._lock:
            return self._renew(tensors, parameters, state)

    def adopt(self, tensors: Sequence[torch.Tensor], derived: Sequence[torch.Tensor]) -> None:
        """Take ``derived`` as what is derived from the parameters among ``tensors``, which are as they were then."""
        if len(derived) != len(self.program.derived):
            raise ValueError(f"{len(derived)} derived tensors for {len(self.program.derived)}")
        with self._lock:
            parameters = self._parameters(tensors)
            self._keep(Guard(parameters, self._is_source, self._unchanged), parameters, list(derived))

    def clear(self) -> None:
        """Forget everything derived."""
        with self._lock:
            for state in self._states.values():
                forget_shared(state.guard.storages())
            self._states.clear()

    def forget(self, storages: set[int]) -> None:
        """Forget what was derived from any of these storages (``_cdata``)."""
        with self._lock:
            self._drop(lambda state: not storages.isdisjoint(state.guard.storages()))

    def _drop(self, unwanted: Callable[[State], bool]) -> None:
        for key in [key for key, state in self._states.items() if unwanted(state)]:
            del self._states[key]

    def _renew(
        self, tensors: Sequence[torch.Tensor], parameters: tuple[torch.Tensor, ...], failed: State | None
    ) -> State:
        self._drop(lambda state: not state.guard.alive())
        key = id(parameters[0])
        known = self._states.get(key)
        if known is not None and known is not failed and known.guard.holds(parameters):
            return known  # another thread was faster
        guard = Guard(parameters, self._is_source, self._unchanged)  # first: a write from now on counts as a change
        # New objects over the same storages at the same versions (detached aliases, say) need no new derivation, nor does
        # a parameter that moved and has nothing derived from it.
        same = next((s for s in self._states.values() if s.guard.covers(guard)), None)
        return self._keep(guard, parameters, same.derived if same is not None else self._derive(tensors))

    def _keep(self, guard: Guard, parameters: tuple[torch.Tensor, ...], derived: list[torch.Tensor]) -> State:
        key = id(parameters[0])
        pointers = [(self._layout.inputs + i, p.data_ptr()) for i, p in zip(self.inputs, parameters, strict=True)]
        pointers += [(self._layout.derived + k, d.data_ptr()) for k, d in enumerate(derived)]
        self._states.pop(key, None)
        state = self._states[key] = State(guard, pointers, derived)
        while len(self._states) > _KEPT_STATES:
            del self._states[next(iter(self._states))]
        return state

    def _derive(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.derivations += 1
        program, pages = self.program, Pages()
        prepared = _Prepared(self._prepare, program, tensors)
        known: dict[tuple[tuple[int, ...], bool], Sources] = {}

        def sources(given: tuple[int, ...], computed: bool) -> Sources:
            """Of the inputs ``given`` and, where something is ``computed``, of all that it is prepared from: looked at once."""
            if (given, computed) not in known:
                of = [*(tensors[i] for i in given), *(prepared.inputs if computed else [])]
                known[given, computed] = Sources(of)
            return known[given, computed]

        def tensor(source: tuple[str, int]) -> torch.Tensor:
            kind, index = source
            if kind == "joined":
                return join([(part, tensor(part.source)) for part in program.joined[index].parts])
            return tensors[index] if kind == "input" else prepared.results[index]

        def one(d: Derived) -> torch.Tensor:
            kind, index = d.source
            origins = program.origins(d.source)
            given = tuple(i for origin, i in origins if origin == "input")
            computed = tuple(i for origin, i in origins if origin == "prepared")
            view = _anonymous(program.joined[index]) if kind == "joined" else ()
            origin = (view, computed, prepared.digest if computed else "")

            def compute() -> torch.Tensor:
                return derive(d.function, tensor(d.source), dict(d.attributes), pages)

            return shared((d.function, d.attributes, origin), sources(given, bool(computed)), compute)

        return [one(d) for d in program.derived]


def _anonymous(joined: Joined) -> tuple[object, ...]:
    """``joined`` without the numbers of its sources, which differ from program to program."""
    return tuple((p.source[0], p.offset, p.sizes, p.strides) for p in joined.parts)


class _Prepared:
    """What ``program.prepare`` computes from the parameters among ``tensors``, when it is first asked for."""

    def __init__(self, prepare: Prepare | None, program: Program, tensors: Sequence[torch.Tensor]) -> None:
        self._prepare = prepare
        by_name = {given.param: tensors[i] for i, given in enumerate(program.inputs) if given.param}
        self.inputs = [by_name[given.param] for given in prepare.program.inputs] if prepare is not None else []

    @cached_property
    def digest(self) -> str:
        return self._prepare.program.digest() if self._prepare is not None else ""

    @cached_property
    def results(self) -> list[torch.Tensor]:
        assert self._prepare is not None, "Program checks where derived weights come from"
        results = self._prepare((), self.inputs)
        self._prepare.trim()
        return results


_ALL: weakref.WeakSet[Weights] = weakref.WeakSet()


def forget(tensors: Iterable[torch.Tensor]) -> None:
    """Have everything that is derived from these tensors derived anew at the next call."""
    storages = {t.untyped_storage()._cdata for t in tensors}
    forget_shared(storages)
    for weights in list(_ALL):
        weights.forget(storages)


@lru_cache(maxsize=1)
def _watch_optimizers() -> None:
    """Have every optimizer step forget what was derived from the parameters it wrote."""

    def stepped(optimizer: Optimizer, args: object, kwargs: object) -> None:
        holders = [weights for weights in list(_ALL) if weights._states]
        if holders:
            written = {p.untyped_storage()._cdata for group in optimizer.param_groups for p in group["params"]}
            forget_shared(written)
            for weights in holders:
                weights.forget(written)

    register_optimizer_step_post_hook(stepped)


def _after_fork() -> None:
    """A thread that held a lock does not exist in the child."""
    for weights in list(_ALL):
        weights._lock = threading.Lock()
    after_fork()


os.register_at_fork(after_in_child=_after_fork)
