"""``Options``: what a user may ask of effc, checked once, at construction.

One frozen dataclass serves ``torch.compile(..., options={...})``, ``effc.explain`` and the compiler. Options compare
and hash by value, because Dynamo decides by ``==`` whether a compiled function may be used again.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from effc.compiler.ir.budgets import budget
from effc.compiler.ir.compression import Compression, compressions
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.plan import METRICS, Plan

#: Options of one pass: ``False`` switches it off; else (option, value) pairs, sorted.
PassChoice = bool | tuple[tuple[str, Any], ...]

#: Known options whose feature this version does not have, and what that is.
UNAVAILABLE: Mapping[str, str] = {
    "release_weights": "releasing the original weights",
}


#: Arguments of ``effc.plan`` that mean nothing without it.
OF_PLAN = ("latency_budget_ms", "size_budget_mb", "autotune")


@dataclass(frozen=True, init=False)
class Options:
    """What to compile and how; all arguments are keywords. OptionError names an option or value that is not taken.

    fallback: ``"eager"`` leaves to ATen what effc does not compile; ``"error"`` refuses such a graph, naming the op.
    check: run each region also by ATen on the live inputs, and raise ``VerificationError`` on a difference.
    target: ``"cpu"`` or ``"cuda"``, what is on other devices being left to ATen; None: each op is compiled for the device that it is on.
    passes: by name, ``False`` or ``{option: value}``; stored as sorted pairs.
    cache_dir: where compiled programs are kept; None: the user's cache directory.
    cost_model: what prices kernels where a plan is made: the folder of a trained model, or the name of a shipped one; None: the shipped one
    whose machine is nearest to this.
    plan: a ``Plan``, or the path of a saved one; it brings its budget and metric.
    trace: a folder to which the model's runs add the times of its kernels, for training a cost model.
    accuracy_budget, metric: without a plan; the metric is a name or a callable ``(reference_outputs, outputs, batch) -> float``.
    """

    fallback: str
    check: bool
    target: str | None
    passes: tuple[tuple[str, PassChoice], ...]
    cache_dir: str | None
    trace: str | None
    cost_model: str | None
    plan: Plan | None
    accuracy_budget: float
    metric: str | Callable[..., float]

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in _READ:
                raise OptionError(_refusal(name))
        for item in fields(self):
            read, default = _READ[item.name]
            object.__setattr__(self, item.name, read(values[item.name]) if item.name in values else default)
        if self.plan is not None and (self.accuracy_budget or "metric" in values):
            raise OptionError(
                "options 'plan' and 'accuracy_budget' or 'metric' exclude each other: a plan has both in it"
            )

    @staticmethod
    def of(options: Options | Mapping[str, Any] | None, mode: str | None = None) -> Options:
        """The options of a ``torch.compile`` call; ``mode`` is taken where it asks for nothing that effc lacks."""
        _check_mode(mode)
        if options is None:
            return Options()
        if isinstance(options, Options):
            return options
        if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
            raise OptionError(f"options={options!r}: expected a dict from option names to values, or effc.Options")
        return Options(**options)

    def changed(self, **values: Any) -> Options:
        """These without a budget and a metric, and with ``values``."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("accuracy_budget", "metric")}
        return Options(**{**kept, **values})

    def exact(self) -> Options:
        """These without what compresses."""
        return self.changed(passes={n: choice for n, choice in _plain(self.passes).items() if n not in compressions()})

    def with_plan(self, plan: Plan) -> Options:
        """These, with ``plan`` in place of a budget, a metric, and what compresses."""
        return self.exact().changed(plan=plan)

    def of_code(self) -> dict[str, Any]:
        """Those that decide what code is made, as JSON values: they are part of the cache's key."""
        schedules = self.plan.schedules() if self.plan is not None else {}
        exact = {name: choice for name, choice in _plain(self.passes).items() if name not in compressions()}
        return {
            "passes": exact,
            "schedules": {key: dict(schedule.parameters) for key, schedule in sorted(schedules.items())},
        }

    def compressions(self) -> list[Compression]:
        """The rewrites that ``passes`` asks for, beyond what keeps the function."""
        found = [compression_of(name, choice) for name, choice in self.passes if name in compressions()]
        return [c for c in found if c is not None]

    def arguments(self) -> dict[str, Any]:
        """Arguments that make equal options."""
        planned = {"plan": self.plan} if self.plan is not None else {"metric": self.metric}
        return {
            "fallback": self.fallback,
            "check": self.check,
            "target": self.target,
            "cache_dir": self.cache_dir,
            "trace": self.trace,
            "cost_model": self.cost_model,
            "passes": _plain(self.passes),
            "accuracy_budget": self.accuracy_budget,
            **planned,
        }


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error about ``name``: the nearest known spelling, if one is near, and what there is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known) or "none"
    return (f"did you mean '{near[0]}'? " if near else "") + f"(known: {listed})"


# -- reading of values ----------------------------------------------------------------------------------------------
def _refusal(name: str) -> str:
    if name in OF_PLAN:
        return f"option '{name}' is an argument of effc.plan: call effc.plan(model, calibration, {name}=...), and give the plan as 'plan'"
    if name in UNAVAILABLE:
        return f"option '{name}': {UNAVAILABLE[name]} is not part of this version of effc; leave the option out"
    return f"unknown option '{name}': {suggest(name, _READ)}"


def _check_mode(mode: str | None) -> None:
    if mode in (None, "default", "reduce-overhead"):
        return  # effc's calls have no overhead that a mode would reduce
    if mode in ("max-autotune", "max-autotune-no-cudagraphs"):
        raise OptionError(
            f"mode='{mode}': torch.compile alone searches no schedules; leave mode out, "
            "or give a plan made with effc.plan(..., autotune=8)"
        )
    raise OptionError(f"unknown mode {mode!r}: effc takes 'default' and 'reduce-overhead'")


def _choice(name: str, *allowed: str | None) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not (value is None or isinstance(value, str)) or value not in allowed:
            near = difflib.get_close_matches(str(value), [a for a in allowed if a is not None], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise OptionError(f"option '{name}' is {value!r}: allowed are {', '.join(map(repr, allowed))}{hint}")
        return value

    return read


def _flag(name: str) -> Callable[[Any], bool]:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise OptionError(f"option '{name}' is {value!r}: allowed are True, False")
        return value

    return read


def _directory(name: str) -> Callable[[Any], str | None]:
    def read(value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str | os.PathLike):
            raise OptionError(f"option '{name}' is {value!r}: expected the path of a directory")
        path = os.path.abspath(os.path.expanduser(os.fsdecode(value)))
        if os.path.exists(path) and not os.path.isdir(path):
            raise OptionError(
                f"option '{name}' is {value!r}: that is a file; expected a directory, which is made if absent"
            )
        return path

    return read


def _name(name: str) -> Callable[[Any], str | None]:
    def read(value: Any) -> str | None:
        if value is not None and not (isinstance(value, str | os.PathLike) and os.fsdecode(value)):
            raise OptionError(f"option '{name}' is {value!r}: expected a path or a name")
        return None if value is None else os.fsdecode(value)

    return read


def _passes(value: Any) -> tuple[tuple[str, PassChoice], ...]:
    if isinstance(value, tuple):
        value = {name: choice if isinstance(choice, bool) else dict(choice) for name, choice in value}
    if not isinstance(value, Mapping):
        raise OptionError(
            f"option 'passes' is {value!r}: expected a dict from pass names to False or a dict of options"
        )
    if not value:
        return ()
    # The passes register themselves when imported; this package may not depend on them, so they are found by name.
    known: dict[str, Any] = {**importlib.import_module("effc.passes").registry(), **compressions()}
    found: list[tuple[str, PassChoice]] = []
    for name, choice in value.items():
        if name not in known:
            raise OptionError(f"option 'passes': no pass is named {name!r}; {suggest(str(name), known)}")
        found.append((name, _pass_choice(name, choice, [f.name for f in fields(known[name])])))
        if name in compressions():
            compression_of(name, found[-1][1])
    return tuple(sorted(found))


def _pass_choice(name: str, choice: Any, known: list[str]) -> PassChoice:
    if isinstance(choice, bool):
        return choice
    if not isinstance(choice, Mapping):
        raise OptionError(f"option 'passes': '{name}' is {choice!r}; expected True, False or a dict of its options")
    for option in choice:
        if option not in known:
            raise OptionError(f"option 'passes': pass '{name}' has no option {option!r}; {suggest(str(option), known)}")
    return tuple(sorted((option, _frozen(value)) for option, value in choice.items()))


def _plain(passes: Iterable[tuple[str, PassChoice]]) -> dict[str, Any]:
    return {name: choice if isinstance(choice, bool) else dict(choice) for name, choice in passes}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def compression_of(name: str, choice: PassChoice) -> Compression | None:
    """The rewrite with its options; None where it is switched off. OptionError where they do not fit."""
    if choice is False:
        return None
    return compressions()[name](**(dict(choice) if isinstance(choice, tuple) else {}))


def _plan(value: Any) -> Plan | None:
    if value is None or isinstance(value, Plan):
        return value
    if isinstance(value, str | os.PathLike):
        # Files are read outside this package, which imports nothing of ours.
        found: Plan = importlib.import_module("effc.planning.plans").load_plan(value)
        return found
    raise OptionError(f"option 'plan' is {value!r}: expected what effc.plan returns, or the path of a saved plan")


def metric(value: Any) -> str | Callable[..., float]:
    """A metric's name, or the user's own; OptionError for anything else."""
    if callable(value):
        found: Callable[..., float] = value
        return found
    if value not in METRICS:
        raise OptionError(
            f"option 'metric' is {value!r}: expected a callable (reference_outputs, outputs, batch) -> float, or a name; "
            f"{suggest(str(value), METRICS)}"
        )
    return str(value)


#: Reader and default of every option.
_READ: Mapping[str, tuple[Callable[[Any], Any], Any]] = {
    "fallback": (_choice("fallback", "eager", "error"), "eager"),
    "check": (_flag("check"), False),
    "target": (_choice("target", "cpu", "cuda", None), None),
    "passes": (_passes, ()),
    "cache_dir": (_directory("cache_dir"), None),
    "trace": (_directory("trace"), None),
    "cost_model": (_name("cost_model"), None),
    "plan": (_plan, None),
    "accuracy_budget": (budget, 0.0),
    "metric": (metric, METRICS[0]),
}
