"""Run one program's source through a backend and compare."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import exactness
import float64
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import _pytree as pytree

from .generate import STEPS
from .program import Function, load

#: Where eager's own sign of a zero depends on how a library's loop goes: contractions (MKL leaves -0 for one term, +0
#: for two or more), and extrema of zeros of both signs (``torch.maximum(-0, 0)`` is 0 in a vector and -0 in its
#: remainder).
_UNSIGNED = (
    "@",
    "linear",
    "einsum",
    "baddbmm",
    "conv",
    "amax",
    "amin",
    "maximum",
    "minimum",
    ".max(",
    "sort",
    "topk",
    "max_pool",
)


@dataclass(frozen=True)
class Outcome:
    """``ok``, ``mismatch``, ``error`` (raised where eager does not), ``crash`` (process gone or hung), or
    ``skipped``: torch is at fault, since eager or the backend ``aot_eager`` fails as well, or AOTAutograd as Inductor
    configures it (``aot_eager_decomp_partition``) raises the same error.
    """

    status: str
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def failed(self) -> bool:
        return self.status in ("mismatch", "error", "crash")


#: How a program runs: as it is; with gradients of its results; under autocast.
MODES = ("plain", "train", "autocast")


def check(source: str, seed: int, backend: str, dynamic: bool = False, mode: str = "plain") -> Outcome:
    """Static: one size, two sets of values, one compilation. Dynamic: ``STEPS``, one compiled function."""
    outcome = _run(source, seed, backend, dynamic, mode)
    if outcome.failed and _run(source, seed, "aot_eager", dynamic, mode).failed:
        return Outcome("skipped", f"aot_eager fails too: {outcome.detail}")
    if outcome.status == "error" and outcome == _run(source, seed, "aot_eager_decomp_partition", dynamic, mode):
        return Outcome("skipped", f"aot_eager_decomp_partition fails too: {outcome.detail}")
    return outcome


def _run(source: str, seed: int, backend: str, dynamic: bool, mode: str) -> Outcome:
    plain, inputs = load(source)
    torch._dynamo.reset()
    graph, compiled = (_in_mode(f, mode) for f in (plain, torch.compile(plain, backend=backend, dynamic=dynamic)))
    zero_signs = mode == "plain" and not any(word in source for word in _UNSIGNED)
    calls = [(seed, step) for step in STEPS] if dynamic else [(seed, 0), (seed + 1, 0)]
    with warnings.catch_warnings(), torch.set_grad_enabled(mode == "train"):
        warnings.simplefilter("ignore")
        for value, step in calls:
            arguments = inputs(value, step)
            try:
                eager = float64.run(graph, arguments)
            except Exception as err:
                return Outcome("skipped", f"eager: {err}")
            try:
                ours = float64.run(compiled, arguments)
            except Exception as err:
                return Outcome("error", f"{type(err).__name__}: {err}".strip()[:600])
            strides = mode == "plain" and _strides_are_known(graph, arguments, eager)
            problems = exactness.judge(graph, arguments, ours, eager, strides, zero_signs).problems
            if problems:
                return Outcome("mismatch", f"seed {value}, step {step}: " + "; ".join(problems)[:600])
    return Outcome("ok")


def _in_mode(function: Function, mode: str) -> Function:
    """``train``: the results, and the gradients of a weighted sum of them with respect to each floating input."""

    def autocast(*arguments: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return function(*arguments)

    def train(*arguments: Any) -> Any:
        leaves = [a.detach().requires_grad_(a.is_floating_point()) for a in arguments]
        results = function(*(a.clone() for a in leaves))  # a leaf cannot be written
        differentiable = [r for r in results if r.requires_grad]
        wanted = [a for a in leaves if a.requires_grad]
        loss = sum(
            ((r * torch.arange(1, r.numel() + 1).view(r.shape).sin()).sum().double() for r in differentiable),
            torch.zeros(()),
        )
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if differentiable else ()
        return [r.detach().clone() for r in results], gradients

    return {"plain": function, "train": train, "autocast": autocast}[mode]


def _strides_are_known(graph: Function, arguments: Any, eager: float64.Run) -> bool:
    """Whether tracing predicts eager's strides; for some ops (an index that is transposed) torch's own meta does
    not.
    """
    try:
        with FakeTensorMode() as mode:
            fake = graph(*pytree.tree_map(mode.from_tensor, arguments))
    except (
        DataDependentOutputException,
        TypeError,
    ):  # shapes depend on data; or a meta function of torch's own is wrong
        return False
    predicted = [t.stride() for t in pytree.tree_leaves(fake)]
    return predicted == [t.stride() for t in pytree.tree_leaves(eager.outputs)]
