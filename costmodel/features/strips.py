"""How a ``loops`` kernel is written out: strips of vectors along one dimension, squares that are transposed, sums that are folded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.spec import KernelSpec
from effc.costmodel.features.kinds import kind_of
from effc.costmodel.features.moves import Access, line_of, vectors_along
from effc.costmodel.features.schedules import Numbers

Array = NDArray[np.float64]

#: Of `facts`. ``line``: elements that vectors run along; ``across``: of the other side of transposed squares, 0 for none; ``folds``: sums
#: whose lanes are folded, ``finds``: positions of extrema; ``wanted``: vectors that the template computes beside each other; ``touches``:
#: loads and stores; ``nested``: loops; ``masked``: loads of borders.
NAMES: tuple[str, ...] = ("line", "across", "folds", "finds", "wanted", "touches", "nested", "masked_loads")

#: Vectors beside each other, by the instructions of the body; joined ones where there are polynomials, and in a reduction.
_SHORT, _MEDIUM = (10, 4), (60, 2)
_JOINED, _JOINED_REDUCTION = 8, 4
_POLYNOMIAL = 12
#: Instructions around a strip of single vectors and of the last, masked one; of each loop, fold, position, and transposed square; by least
#: squares over traces of Zen 4.
_SINGLE, _REST, _TOUCH, _LOOP, _FOLD, _FIND, _SQUARE, _BORDER = 2.2, 1.0, 6.5, 36.0, 11.6, 33.0, 130.0, 25.0


def facts(spec: KernelSpec, sizes: Sequence[int], accesses: Sequence[Access]) -> tuple[float, ...]:
    """Of one kernel, by `NAMES`."""
    along = vectors_along(accesses)
    turned = [a for a in accesses if a.along >= 0 and a.along != along and not a.store and not a.masked]
    horizontal = along >= 0 and spec.dims[along].kind != "parallel"
    reduces = [i for i in spec.body if i.op == "reduce"]
    ops = [i for i in spec.body if i.op not in ("constant", "index")]
    heavy = sum(kind_of(i) == "math" and i.op not in ("math.sqrt", "math.rsqrt") for i in ops)
    work = len(ops) + (_POLYNOMIAL - 1) * heavy
    wanted = next((vectors for most, vectors in (_SHORT, _MEDIUM) if work <= most), 1)
    if heavy:
        wanted = _JOINED_REDUCTION if any(d.kind != "parallel" for d in spec.dims) else _JOINED
    return (
        float(line_of(along, accesses, sizes)) if along >= 0 else 1.0,
        float(line_of(turned[0].along, accesses, sizes)) if turned else 0.0,
        float(len(reduces) * horizontal),
        float(sum(i["kind"].startswith("arg") for i in reduces)),
        float(wanted),
        float(len(accesses)),
        float(sum(size > 1 for size in sizes)),
        float(sum(a.masked for a in accesses)),
    )


def instructions(n: Numbers) -> Array:
    """Of the code of a ``loops`` kernel."""
    line, lanes = n["line"], n["lanes"]
    beside = np.clip(np.floor(line / lanes), 1, n["wanted"])
    step = lanes * beside
    single = (beside > 1) & (line % step >= lanes)
    rest = line % lanes > 0
    vectors = beside * (line >= step) + _SINGLE * single + _REST * rest
    strips = vectors * n["body"] + _TOUCH * n["touches"] * rest + _LOOP * n["nested"]
    strips = strips + (_FIND * n["finds"] + _BORDER * n["masked_loads"]) * (1 + single + rest)
    squares = _SQUARE * (1 + (n["across"] % lanes > 0) + (n["across"] > lanes))
    found: Array = np.where(n["across"] > 0, squares, strips) + _FOLD * n["folds"]
    return found
