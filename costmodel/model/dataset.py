"""Traces as arrays: what a model is trained on and judged by."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.spec import KernelSpec
from effc.costmodel import features, roofline
from effc.costmodel.features.scale import counts
from effc.costmodel.hardware import Hardware
from effc.costmodel.parquet import NO_SPEC
from effc.costmodel.traces import Part, Trace

#: A record whose quartiles are further apart than this share of its median teaches nothing.
NOISY = 0.5

_ROOF, _COUNTED, _CODE = (features.COLUMNS.index(name) for name in ("log_roof", "log_counted", "log_code"))
#: Sizes of a nest by which shapes are told apart, and how much larger those of the next kind are, as a power of two.
_SIZES = tuple(features.COLUMNS.index(f"log_{name}") for name in ("rows", "columns", "sums"))
_OCTAVES = 3
#: How subjects begin that are models.
_MODEL = "model:"
#: Facts of the code, by their names in `traces.Code`.
CODE = ("instructions", "code_bytes", "spills", "vector_share")


@dataclass(frozen=True)
class Dataset:
    """``rows``: features; ``seconds``: median of one call; ``roof``: what the roofline says, ``counted``: what a count of cycles does.
    ``families`` as in the traces, of models each one; ``shapes``: finer ones, of kernels of one family and size. ``sites``: of each record
    the kernel, machine and threads: its schedules compete with each other; ``own``: the template's own choice among them. ``code``: `CODE`
    of each, NaN where it is not known; ``traces``: what each is made from, a `Trace`. ``skipped``: records that are left out, by reason.
    """

    rows: NDArray[np.float32]
    seconds: NDArray[np.float64]
    roof: NDArray[np.float64]
    counted: NDArray[np.float64]
    families: NDArray[np.str_]
    shapes: NDArray[np.str_]
    sites: NDArray[np.str_]
    own: NDArray[np.bool_]
    spread: NDArray[np.float64]
    code: NDArray[np.float64]
    traces: NDArray[np.object_]
    skipped: Counter[str]
    machines: tuple[Hardware, ...]

    def __len__(self) -> int:
        return len(self.seconds)

    def only(self, chosen: NDArray[np.bool_]) -> Dataset:
        """The records where ``chosen`` holds."""
        arrays = (f.name for f in fields(self) if f.name not in ("skipped", "machines"))
        return replace(self, **{name: getattr(self, name)[chosen] for name in arrays})


def dataset(parts: Iterable[Part]) -> Dataset:
    """Of the records of all parts, each kernel, schedule, machine and number of threads once: the least median. Schedules that differ in
    the order of loops alone, and in no feature, have one code, and count as one. OptionError: there are no records.
    """
    skipped: Counter[str] = Counter()
    best: dict[tuple[str, ...], tuple[Trace, KernelSpec]] = {}
    machines: dict[str, Hardware] = {}
    for part in parts:
        skipped.update(part.skipped)
        machine = part.hardware.digest()
        machines.setdefault(machine, part.hardware)
        for trace in part.traces:
            spec = _spec(trace)
            reason = "no spec" if spec is None else "too wide a spread" if trace.spread > NOISY else ""
            if reason or spec is None:
                skipped[reason] += 1
                continue
            key = (machine, *site_key(trace), trace.schedule)
            if key not in best or trace.median < best[key][0].median:
                best[key] = trace, spec
    found = _arrays(best, machines, skipped) if best else None
    if found is None or not len(found):
        told = ", ".join(f"{count} with {reason}" for reason, count in skipped.items())
        raise OptionError(f"the traces hold no record to learn from{f' ({told})' if told else ''}: collect first")
    return found


def site_key(trace: Trace) -> tuple[str, str, str]:
    """What schedules of one kernel share."""
    return trace.computation, str(trace.symbols), str(trace.threads)


def roof_seconds(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The roofline's time of each row of features, with what a call costs."""
    return counts(rows, _ROOF) * 1e-9 + roofline.OVERHEAD


def counted_seconds(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The counted time of each row of features (`features.cycles`): what the model's predictions are relative to."""
    return counts(rows, _COUNTED) * 1e-9


def counted_instructions(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The counted instructions of the code of each row (`features.code`)."""
    return counts(rows, _CODE)


def _spec(trace: Trace) -> KernelSpec | None:
    try:
        return trace.kernel
    except NO_SPEC:
        return None


def _arrays(
    best: dict[tuple[str, ...], tuple[Trace, KernelSpec]], machines: dict[str, Hardware], skipped: Counter[str]
) -> Dataset:
    groups: dict[tuple[str, int], list[tuple[tuple[str, ...], Trace, KernelSpec]]] = defaultdict(list)
    for key, (trace, spec) in best.items():
        groups[key[0], trace.threads].append((key, trace, spec))
    known: dict[tuple[tuple[str, ...], str, bytes], tuple[Trace, NDArray[np.float32]]] = {}
    for (machine, threads), records in groups.items():
        found = _rows([(spec, trace.symbols) for _, trace, spec in records], machines[machine], threads)
        for (key, trace, spec), row in zip(records, found, strict=True):
            reason = "no spec" if row is None else "" if _is_known(row) else "features that are no numbers"
            if reason or row is None:
                skipped[reason] += 1
            else:
                place = key[:-1], key[-1] if spec.stages else _but_for_order(spec), row.tobytes()
                known[place] = _either(known[place][0], trace) if place in known else trace, row
    whole = np.stack([row for _, row in known.values()]) if known else np.zeros((0, len(features.COLUMNS)), np.float32)
    traces = [trace for trace, _ in known.values()]
    families = np.array([t.subject if t.subject.startswith(_MODEL) else t.family for t in traces])
    return Dataset(
        rows=whole,
        seconds=np.array([t.median for t in traces]),
        roof=roof_seconds(whole),
        counted=counted_seconds(whole),
        families=families,
        shapes=shape_names(families, whole[:, _SIZES], _OCTAVES),
        sites=np.array([" ".join(site) for site, *_ in known]),
        own=np.array([t.own_choice for t in traces]),
        spread=np.array([t.spread for t in traces]),
        code=np.array([_code(t) for t in traces]),
        traces=np.array(traces, object),
        skipped=skipped,
        machines=tuple(machines.values()),
    )


def _but_for_order(spec: KernelSpec) -> str:
    return str([parameter for parameter in spec.schedule.parameters if parameter[0] != "order"])


def _either(a: Trace, b: Trace) -> Trace:
    """Of two records of one code the faster one, the template's own choice where either is."""
    return replace(min(a, b, key=lambda trace: trace.median), own_choice=a.own_choice or b.own_choice)


def shape_names(families: NDArray[np.str_], sizes: NDArray[np.float32], octaves: int) -> NDArray[np.str_]:
    """Of records of these families, with logarithms of their sizes: what those share that are of about one size, to so many octaves."""
    classes = np.round(np.nan_to_num(sizes) / octaves).astype(int)
    return np.array([f"{f} {'x'.join(map(str, c))}" for f, c in zip(families, classes, strict=True)])


def _rows(kernels: Sequence[features.Kernel], machine: Hardware, threads: int) -> list[NDArray[np.float32] | None]:
    """Features of each; None of those that none can be told of, whose specs say what cannot be."""
    try:
        return list(features.matrix(kernels, machine, threads))
    except NO_SPEC:
        if len(kernels) == 1:
            return [None]
    half = len(kernels) // 2
    return [*_rows(kernels[:half], machine, threads), *_rows(kernels[half:], machine, threads)]


def _is_known(row: NDArray[np.float32]) -> bool:
    """Whether a model can learn from it: NaN says that a feature has no meaning, and what times are relative to always has one."""
    return not np.isinf(row).any() and bool(np.isfinite(row[[_ROOF, _COUNTED]]).all())


def _code(trace: Trace) -> list[float]:
    return [float(getattr(trace.code, name)) if trace.code else float("nan") for name in CODE]
