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
#: loads and stores; ``nested``: loops; ``masked_loads``: of borders; ``functions``: whether there are polynomials.
NAMES: tuple[str, ...] = (
    *("line", "across", "folds", "finds", "wanted", "touches", "nested", "masked_loads"),
    "functions",
)

_OTHERS, _NOTHING = ("contraction", "attention", "block"), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
#: Vectors beside each other, by the instructions of the body; joined ones where there are polynomials, and in a reduction.
_SHORT, _MEDIUM = (10, 4), (60, 2)
_JOINED, _JOINED_REDUCTION = 8, 4
_POLYNOMIAL = 12
#: Of the instructions of a body: how many a vector beside others has, a strip of single vectors, and the last, masked one, whose loads and
#: stores take more; instructions of a function's constants, of each loop, fold, position, masked load, and of a square that is transposed,
#: of one that is not whole, and of several; by least squares over traces of Zen 4.
_BESIDE, _SINGLE, _REST, _TOUCH, _CONSTANTS = 0.66, 2.0, 0.5, 7.3, 32.0
_LOOP, _FOLD, _FIND, _BORDER, _SQUARE, _BROKEN, _SEVERAL = 34.0, 27.0, 56.0, 10.0, 125.0, 125.0, 70.0


def facts(spec: KernelSpec, sizes: Sequence[int], accesses: Sequence[Access]) -> tuple[float, ...]:
    """Of one kernel, by `NAMES`; of templates that are counted otherwise, `_NOTHING`."""
    if spec.template in _OTHERS:
        return _NOTHING
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
        float(heavy > 0),
    )


def instructions(n: Numbers) -> Array:
    """Of the code of a ``loops`` kernel."""
    line, lanes = n["line"], n["lanes"]
    beside = np.clip(np.floor(line / lanes), 1, n["wanted"])
    step = lanes * beside
    single = (beside > 1) & (line % step >= lanes)
    rest = line % lanes > 0
    vectors = _BESIDE * beside * (line >= step) + _SINGLE * single + _REST * rest
    strips = vectors * n["body"] + _TOUCH * n["touches"] * rest + _LOOP * n["nested"] + _CONSTANTS * n["functions"]
    strips = strips + (_FIND * n["finds"] + _BORDER * n["masked_loads"]) * (1 + single + rest)
    squares = _SQUARE + _BROKEN * (n["across"] % lanes > 0) + _SEVERAL * (n["across"] > lanes)
    found: Array = np.where(n["across"] > 0, squares, strips) + _FOLD * n["folds"]
    return found
