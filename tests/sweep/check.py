"""One OpInfo sample through the backend: did it agree with eager, and what ran it?"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import exactness
import float64
import torch
from copies import COPIES
from torch.testing._internal import common_methods_invocations
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

#: dtypes of samples that the sweep takes.
_DTYPES = ("float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool")
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _DTYPES}
#: How effc's record begins where it leaves to ATen a part without arithmetic, or without elements.
_NO_WORK = "moves data only"
#: Results that eager leaves undefined: only shapes and dtypes compare.
_UNDEFINED = (
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "empty_permuted",
    "resize_",
    "resize_as_",
)


@dataclass
class Verdict:
    """What one sample showed.

    ``status``: ``compiled`` (every ATen op in effc kernels), ``partly``, ``fallback`` (no kernel), ``copies`` (eager
    does no arithmetic here), ``ran`` (a backend that keeps no record), ``mismatch`` (beyond ``torch.testing``'s
    tolerances), ``inexact`` (within them, but not exact), ``error`` (raised), ``crash`` (process died or hung),
    ``torch`` (backend ``aot_eager``, which is torch alone, fails as well), ``skipped`` (eager raises).
    """

    status: str
    detail: str = ""
    reasons: list[tuple[str, str]] = field(default_factory=list)  # (ATen op, why it fell back)
    random: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Log(TorchDispatchMode):
    """Names of the ATen ops that run inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def _call(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


# Seeds the generator and calls: Dynamo does not trace the seeding. ``check`` seeds before each call instead.
common_methods_invocations.wrapper_set_seed = _call  # type: ignore[attr-defined]  # imported there


def ops(names: list[str] | None = None, dtype: torch.dtype = torch.float32) -> list[Any]:
    """OpInfos with ``dtype`` on CPU, in the database's order; ``names`` selects by full name (KeyError: an unknown
    one).
    """
    found = {op.full_name: op for op in op_db if op.supports_dtype(dtype, "cpu")}
    if names is None:
        return list(found.values())
    return [found[name] for name in names]


def samples(op: Any, limit: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    """The first ``limit`` CPU samples, the same in every process."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=False), limit))


def check(op: Any, sample: Any, backend: str) -> Verdict:
    """Run one sample eagerly and compiled; what either raises is in the verdict."""
    inputs = (sample.input, tuple(sample.args), dict(sample.kwargs))

    def call(value: Any, args: Any, kwargs: Any) -> Any:
        return op.op(value, *args, **kwargs)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.manual_seed(0)
            eager, log = float64.run(call, inputs), _Log()
            with log:
                torch.manual_seed(1)
                again = float64.run(call, inputs)
        except Exception as err:
            return Verdict("skipped", f"eager: {_first_line(err)}")
        undefined = op.name.split(".")[-1] in _UNDEFINED or not _same(eager, again)
        with _recording(backend) as recording:
            failure = _failure(call, inputs, eager, backend, undefined)
        if failure and _failure(call, inputs, eager, "aot_eager", undefined):
            return Verdict("torch", failure.detail, random=undefined)
        verdict = failure or _facts(recording, log.names)
        verdict.random = undefined
        return verdict


def _failure(
    call: Callable[..., Any], inputs: Any, eager: float64.Run, backend: str, undefined: bool
) -> Verdict | None:
    """What is wrong with the compiled run, if anything; only shapes and dtypes compare where values are
    ``undefined``.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)  # a sample of a random op may give the same with both of eager's seeds
    try:
        ours = float64.run(torch.compile(call, backend=backend, dynamic=False), inputs)
    except Exception as err:
        return Verdict("error", _first_line(err))
    if undefined:
        problem = _shapes(eager, ours)
        return Verdict("mismatch", problem) if problem else None
    return None if _same(eager, ours) else _close(call, inputs, eager, ours)


def _close(call: Callable[..., Any], inputs: Any, eager: float64.Run, ours: float64.Run) -> Verdict | None:
    """None where ``ours`` is exact; it differs from eager in some bits."""
    try:
        for place, expected in eager.tensors().items():
            if isinstance(expected, torch.Tensor):
                torch.testing.assert_close(ours.tensors()[place], expected, equal_nan=True)
    except (AssertionError, KeyError) as err:
        loose = _first_line(err)
    else:
        loose = ""
    try:
        problems = exactness.judge(call, inputs, ours, eager).problems
    except Exception as err:  # the op refuses float64, or the float64 run takes another way
        return Verdict("mismatch", f"{loose}; no float64 reference: {_first_line(err)}") if loose else None
    if not problems:
        return None
    return Verdict("mismatch" if loose else "inexact", problems[0])


def _facts(recording: Any, names: set[str]) -> Verdict:
    copies = names <= COPIES
    if recording is None:
        return Verdict("copies" if copies else "ran")
    kernels = sum(len(r.kernels) for g in recording.graphs for r in g.regions)
    reasons = [(f.op, f.reason) for g in recording.graphs for f in g.fallbacks if not f.reason.startswith(_NO_WORK)]
    if copies:
        return Verdict("copies", reasons=reasons)
    if not recording.graphs:
        return Verdict("fallback", reasons=[("(whole op)", "Dynamo captured no graph")])
    if not reasons:
        return Verdict("compiled" if kernels else "copies")
    return Verdict("partly" if kernels else "fallback", reasons=reasons)


@contextlib.contextmanager
def _recording(backend: str) -> Iterator[Any]:
    if backend != "effc":
        yield None
        return
    from effc.compiler.capture.recording import record

    with record() as recording:
        yield recording


def _same(a: float64.Run, b: float64.Run) -> bool:
    """Bit for bit, NaN equal to NaN."""
    x, y = a.tensors(), b.tensors()
    return x.keys() == y.keys() and all(_equal(x[k], y[k]) for k in x)


def _equal(a: Any, b: Any) -> bool:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return type(a) is type(b) and (a == b or (a != a and b != b))
    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
        return False
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.dtype == torch.complex32:  # torch.equal does not take it
        a, b = a.to(torch.complex64), b.to(torch.complex64)
    return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())


def _shapes(eager: float64.Run, ours: float64.Run) -> str:
    a, b = (
        [(t.dtype, t.shape) for t in pytree.tree_leaves(r.outputs) if isinstance(t, torch.Tensor)]
        for r in (eager, ours)
    )
    return "" if a == b else f"shapes and dtypes {b}, eager {a}"


def _first_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("backend=")]  # Dynamo's own headline
    return f"{type(err).__name__}: {lines[0] if lines else ''}"[:300]
