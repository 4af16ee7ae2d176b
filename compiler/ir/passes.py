"""Passes over a module: their base class, their registry, and the manager that runs a list of them.

A pass is a frozen dataclass with a ``name`` and an ``apply``; **its fields are its options**, in text as in Python::

    @register
    @dataclass(frozen=True)
    class FuseElementwise(Pass):
        '''One sentence, then the IR before and after.'''

        name: ClassVar[str] = "fuse-elementwise"
        max_ops: int = 64

        def apply(self, module: ir.Module) -> None: ...

``effc-opt -p 'fuse-elementwise{max_ops=8},mlir:canonicalize'`` runs it and then an upstream pass; ``pass_text`` has the
grammar. Nothing here imports MLIR until a pass runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeVar

from effc.compiler.ir.errors import EffcError, LoweringError, OptionError

if TYPE_CHECKING:
    from torch_mlir import ir
    from torch_mlir.passmanager import PassManager as MlirPassManager


@dataclass(frozen=True)
class Pass(ABC):
    """A step that changes a module in place; two equal passes do the same."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, module: ir.Module) -> None:
        """Change ``module``; its context is entered. Raises ``EffcError`` or ``MLIRError`` where it cannot."""


@dataclass(frozen=True)
class Upstream(Pass):
    """Passes that MLIR brings: ``mlir:canonicalize``, ``mlir:func.func(cse)``; ``text`` is MLIR's pipeline syntax."""

    name: ClassVar[str] = "mlir"
    text: str

    def apply(self, module: ir.Module) -> None:
        self.parse().run(module.operation)

    def parse(self) -> MlirPassManager:
        """MLIR's pass manager for ``text``, in the current context; OptionError on an unknown pass or option."""
        from torch_mlir.passmanager import PassManager as MlirPassManager

        try:
            return MlirPassManager.parse(f"builtin.module({self.text})")
        except ValueError as error:
            raise OptionError(f"'mlir:{self.text}' is not a pass of MLIR: {' '.join(str(error).split())}") from None


class Instrument:
    """Sees every pass of a ``PassManager``: the hook behind timing, dumps and reproducers. ``index`` counts from 0."""

    def before(self, index: int, step: Pass, module: ir.Module) -> None:
        """Called before ``step`` runs."""

    def after(self, index: int, step: Pass, module: ir.Module) -> None:
        """Called after ``step`` has run and its module has verified."""

    def failed(self, index: int, steps: Sequence[Pass], error: Exception) -> None:
        """Called when ``steps[index]`` raised, or left a module that does not verify."""


@dataclass(frozen=True)
class PassManager:
    """Runs ``steps`` in order; with ``verify`` the module is checked before the first of them and after each."""

    steps: tuple[Pass, ...]
    instruments: tuple[Instrument, ...] = field(default=())
    verify: bool = True

    def run(self, module: ir.Module) -> None:
        """Change ``module`` in place.

        Raises ``LoweringError`` naming the pass where MLIR reports an error or the module no longer verifies; what a
        pass of effc raises comes through with the pass named in a note.
        """
        if self.verify and (problem := _problem(module)):
            raise LoweringError(f"the input of the passes is not valid: {problem}")
        for index, step in enumerate(self.steps):
            self._run_one(index, step, module)

    def _run_one(self, index: int, step: Pass, module: ir.Module) -> None:
        from torch_mlir import ir

        for instrument in self.instruments:
            instrument.before(index, step, module)
        try:
            with module.context, ir.Location.unknown():
                step.apply(module)
            if self.verify and (problem := _problem(module)):
                raise LoweringError(f"pass '{step.name}' left a module that is not valid: {problem}")
        except Exception as error:
            for instrument in self.instruments:
                instrument.failed(index, self.steps, error)
            if isinstance(error, ir.MLIRError):
                raise LoweringError(f"pass '{step.name}' failed: {error}") from error
            error.add_note(f"in pass '{step.name}' (number {index + 1} of {len(self.steps)})")
            raise
        for instrument in self.instruments:
            instrument.after(index, step, module)


def _problem(module: ir.Module) -> str:
    """Why MLIR's verifier or the ``effc`` dialect's refuses the module, or ``""``."""
    from torch_mlir import ir

    from effc.compiler.ir import dialect

    try:
        module.operation.verify()
    except ir.MLIRError as error:
        return str(error)
    return "\n".join(dialect.verify(module))


_REGISTRY: dict[str, type[Pass]] = {}
PassClass = TypeVar("PassClass", bound=type[Pass])


def register(cls: PassClass) -> PassClass:
    """Class decorator: makes the pass known under its ``name``. Two passes of one name are a mistake."""
    known = _REGISTRY.setdefault(cls.name, cls)
    if known.__qualname__ != cls.__qualname__ or known.__module__ != cls.__module__:
        raise EffcError(f"two passes are named '{cls.name}': {known.__module__} and {cls.__module__}; rename one")
    return cls


def registered() -> dict[str, type[Pass]]:
    """The passes that imported modules have registered, by name; ``effc.passes.registry()`` imports them all first."""
    return dict(sorted(_REGISTRY.items()))
