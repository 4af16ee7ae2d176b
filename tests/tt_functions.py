"""The functions of ``arith``, ``math`` and libdevice by numpy, for ``tt_interpreter``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


def _unsigned(x: Any) -> Array:
    found: Array = np.asarray(x)
    return found if found.dtype == np.bool_ else found.view(found.dtype.str.replace("i", "u"))


def _divided(x: Any, y: Any) -> Array:
    """Truncating; by zero anything."""
    x, y = np.asarray(x), np.where(np.asarray(y) == 0, 1, y)
    quotient = np.abs(x.astype(object)) // np.abs(y.astype(object))
    negative = (x < 0) != (y < 0)
    return np.asarray(np.where(negative, -quotient, quotient), np.int64)


def _remainder(x: Any, y: Any) -> Array:
    return np.asarray(np.fmod(x, np.where(np.asarray(y) == 0, 1, y)))


def _as_unsigned(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Array]:
    return lambda x, y: np.asarray(function(_unsigned(x), _unsigned(y)))


def _signed_view(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Array]:
    """Of unsigned numbers; the result's bits are the signed ones again."""

    def applied(x: Any, y: Any) -> Array:
        found = np.asarray(function(_unsigned(x), _unsigned(y)))
        return found if found.dtype == np.bool_ else found.view(np.asarray(x).dtype)

    return applied


def _ordered(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Array]:
    return lambda x, y: np.asarray(function(x, y)) & ~(np.isnan(x) | np.isnan(y))


def _unordered(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Array]:
    return lambda x, y: np.asarray(function(x, y)) | np.isnan(x) | np.isnan(y)


def compared(op: str, predicate: int) -> Callable[[Any, Any], Array]:
    """The comparison that MLIR numbers ``predicate`` for ``arith.cmpi`` or ``arith.cmpf``."""
    if op == "arith.cmpi":
        signed = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
        return signed[predicate] if predicate < 6 else _as_unsigned(signed[predicate - 4])
    relations = (operator.eq, operator.gt, operator.ge, operator.lt, operator.le, operator.ne)
    if 1 <= predicate <= 6:
        return _ordered(relations[predicate - 1])
    if predicate == 7:
        return lambda x, y: ~(np.isnan(x) | np.isnan(y))
    if 8 <= predicate <= 13:
        return _unordered(relations[predicate - 8])
    if predicate == 14:
        return lambda x, y: np.isnan(x) | np.isnan(y)
    raise NotImplementedError(f"{op} {predicate}")


def to_bf16(x: Any) -> Array:
    """float32 rounded to the nearest bf16, ties to even, held in float32."""
    x = np.asarray(x, np.float32)
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), np.float32("nan"), rounded.reshape(x.shape))


def to_tf32(x: Any) -> Array:
    """float32 rounded to 10 bits of mantissa, as tensor cores take it."""
    x = np.asarray(x, np.float32)
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(x), rounded.reshape(x.shape), x)


def _to_integer(x: Any, kind: np.dtype[Any]) -> Array:
    """As the hardware converts: towards zero, clamped, NaN to 0."""
    info = np.iinfo(kind)
    wide = np.nan_to_num(np.asarray(x, np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    low, high = float(info.min), float(info.max)
    inside = np.trunc(np.clip(wide, low, np.nextafter(high, 0) if info.bits == 64 else high)).astype(kind)
    return np.where(wide >= high, info.max, np.where(wide <= low, info.min, inside)).astype(kind)


def _bitcast(x: Any, kind: np.dtype[Any]) -> Array:
    found: Array = np.ascontiguousarray(x).view(kind).reshape(np.shape(x))
    return found


CASTS: Mapping[str, Callable[[Any, np.dtype[Any]], Array]] = {
    "arith.extf": lambda x, kind: np.asarray(x).astype(kind),
    "arith.truncf": lambda x, kind: np.asarray(x).astype(kind),
    "arith.extsi": lambda x, kind: -np.asarray(x).astype(kind) if np.asarray(x).dtype == bool else np.asarray(x).astype(kind),
    "arith.extui": lambda x, kind: _unsigned(x).astype(kind),
    "arith.trunci": lambda x, kind: (np.asarray(x) & 1).astype(bool) if kind == np.bool_ else np.asarray(x).astype(kind),
    "arith.sitofp": lambda x, kind: np.asarray(x).astype(kind),
    "arith.uitofp": lambda x, kind: _unsigned(x).astype(kind),
    "arith.fptosi": _to_integer,
    "arith.bitcast": _bitcast,
}  # fmt: skip

UNARY: Mapping[str, Callable[..., Array]] = {
    "arith.negf": np.negative, "math.absf": np.abs, "math.absi": np.abs, "math.floor": np.floor, "math.ceil": np.ceil,
    "math.sqrt": np.sqrt, "math.exp2": np.exp2, "math.rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip

BINARY: Mapping[str, Callable[..., Array]] = {
    "arith.addi": np.add, "arith.subi": np.subtract, "arith.muli": np.multiply, "arith.divsi": _divided,
    "arith.remsi": _remainder, "arith.divui": _signed_view(lambda x, y: x // np.where(y == 0, 1, y).astype(x.dtype)),
    "arith.remui": _signed_view(lambda x, y: x % np.where(y == 0, 1, y).astype(x.dtype)),
    "arith.andi": np.bitwise_and, "arith.ori": np.bitwise_or, "arith.xori": np.bitwise_xor,
    "arith.shli": np.left_shift, "arith.shrsi": np.right_shift, "arith.shrui": _signed_view(np.right_shift),
    "arith.maxsi": np.maximum, "arith.minsi": np.minimum, "arith.maxui": _signed_view(np.maximum),
    "arith.minui": _signed_view(np.minimum), "arith.addf": np.add, "arith.subf": np.subtract, "arith.mulf": np.multiply,
    "arith.divf": np.divide, "arith.maximumf": np.maximum, "arith.minimumf": np.minimum,
    "math.fma": lambda x, y, z: np.asarray(x, np.float64) * y + z,
}  # fmt: skip

#: libdevice's names that torch spells otherwise.
_TORCH_NAMES = {"pow": "pow", "fmod": "fmod", "rint": "round", "cbrt": "", "fabs": "abs", "tgamma": ""}


@lru_cache
def EXTERN(symbol: str) -> Callable[..., Array]:  # noqa: N802
    """``__nv_expf`` and the like, in float64 by torch."""
    name = symbol.removeprefix("__nv_")
    if not hasattr(torch, _TORCH_NAMES.get(name, name)) and name.endswith("f"):
        name = name[:-1]
    if name == "finite":
        raise NotImplementedError(symbol)
    function = getattr(torch, _TORCH_NAMES.get(name, name))

    def applied(*arrays: Array) -> Array:
        found = function(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
        return np.asarray(found.numpy()).reshape(np.shape(arrays[0]))

    return applied
