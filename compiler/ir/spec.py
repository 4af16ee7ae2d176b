"""``KernelSpec``: the one description from which a kernel is emitted, priced, cached and traced.

A spec is plain data (frozen, hashable, JSON both ways), so a candidate is priced without building MLIR. It reads as a perfect
loop nest over ``dims`` with a straight-line body in SSA form:

- ``dims``: parallel dimensions first, then the reduction dimensions (may be none). Their loop variables are ``d0, d1, …``.
- ``body``: instructions in topological order; instruction *i* defines value ``v<i>``. There is no explicit staging: a value
  that depends on a reduction dimension is *inner*; the result of a ``reduce`` or ``contract`` is *outer* (one value for each
  point of the parallel dimensions) and may feed inner instructions again (softmax: max → exp(x - max) → sum → divide). The
  emitter derives the passes over the reduction dimensions and hoists what does not vary.
- addresses are ``Expr`` in *elements* from the operand's base pointer, over ``d*``, ``v*`` (gathers) and ``symbols``.

A ``block`` has ``stages`` in the place of a body: contractions and loops over the block's operands, in order. Each but the last stores
into one operand alone, of which later ones read: scratch memory, which holds the lines of it that a thread needs, or a result. Its dims are
the lines of the result, of images (images, height) or of a matrix (rows); its schedule says how many ``lines`` make a tile, and into how
many ``slices`` channels are cut, each of which has images of its own.

Memory holds bool as one byte 0/1; in the body it is ``i1``. Symbols are normalised (``s0, s1, …`` in order of appearance), so
that equal kernels of different graphs share one object.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from effc.compiler.ir.expr import Expr, as_expr
from effc.compiler.ir.sparsity import Sparsity

#: Bytes of one element in memory.
ITEM_SIZE: Mapping[str, int] = {
    "f64": 8, "f32": 4, "bf16": 2, "f16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "i1": 1,
}  # fmt: skip

#: The message of a ``check`` for an integer division by zero: eager's own.
DIVISION_BY_ZERO = "ZeroDivisionError"

#: The attribute of a ``contraction`` that names the operands, single rows, of which many elements are expected to be zero.
ZEROS = "zeros"
#: And, where it is known, how many: the share of these elements, or of the results, that are expected to be zero.
SHARE = "share"

#: The attribute of a ``contraction`` for a GPU whose float32 factors may be rounded as those of a convolution, and not of a matrix product.
CONVOLUTION = "convolution"


@dataclass(frozen=True)
class Dim:
    """A loop dimension of ``size`` iterations; ``kind`` is ``"parallel"`` or ``"reduction"``."""

    size: Expr
    kind: str = "parallel"


@dataclass(frozen=True)
class Operand:
    """A buffer that the kernel touches.

    ``role``: ``"read"``, ``"write"``, ``"readwrite"`` (updated in place), ``"packed"`` (read; a derived tensor in the layout that
    the schedule names, see ``packing``), or ``"scratch"`` (memory that the schedule asks for; after all others).
    ``size``: elements between the lowest and highest address touched plus one, from the base pointer. ``sparsity``: of a constant
    whose zeros kernels may leave out.
    """

    dtype: str
    role: str
    size: Expr
    sparsity: Sparsity | None = None

    def to_json(self) -> list[Any]:
        found = self.sparsity
        return [
            self.dtype,
            self.role,
            str(self.size),
            *([] if found is None else found.numbers),
        ]

    @staticmethod
    def from_json(data: Sequence[Any]) -> Operand:
        dtype, role, size, *sparsity = data
        return Operand(dtype, role, as_expr(size), Sparsity(*sparsity) if sparsity else None)


@dataclass(frozen=True)
class Instr:
    """One instruction; ``args`` are indices of earlier instructions, ``dtype`` the result's (``""`` for a store).

    ============  ==================================================  ==========================================================
    op            args                                                attributes
    ============  ==================================================  ==========================================================
    ``load``      (), or (mask i1, other): other where mask is false  ``operand`` int, ``address`` Expr
    ``store``     (value,) or (value, mask)                           ``operand`` int, ``address`` Expr
    ``constant``  ()                                                  ``value`` int, float or "nan"/"inf"/"-inf"
    ``index``     ()                                                  ``expr`` Expr over dims and symbols; dtype ``i64``
    ``reduce``    (value,), or (value, index) for argmax/argmin       ``kind``: add mul max min and or xor argmax argmin
    ``contract``  (lhs value, rhs value): sum of products             none; dtype is the accumulator's
    ``decode``    (code i8,): the f32 that a low-bit code stands for  those of a ``Format`` (`formats`): ``bits`` ``signed`` ``codebook``
    ``check``     (ok i1,)                                            ``message``: raises IndexError(message) after the call;
                                                                      RuntimeError where it is ``DIVISION_BY_ZERO``
    ``arith.*``   as the MLIR op                                      ``predicate`` for ``cmpf``/``cmpi`` by MLIR's name
    ``math.*``    as the MLIR op                                      ``libm.NAME``: a scalar libm call, lane by lane
    ============  ==================================================  ==========================================================

    A factor of ``contract`` is a load and conversions of its value. A packed factor, which is constant, may be quantized: codes by
    ``decode`` or by a conversion of ``i8``, less a zero point, times a scale, of which both may be left out::

        code -> decode | arith.sitofp | arith.uitofp -> arith.subf(_, zero) -> arith.mulf(_, scale)

    in f32, ``zero`` and ``scale`` being loads (and conversions) of constants at addresses over the parallel dimensions of the codes and,
    for groups of ``G`` codes along one reduction dimension ``k``, over ``k // G``; the size of ``k`` is a multiple of ``G``.

    ``max``/``min`` propagate NaN. An outer ``store`` happens once for a parallel point; an inner one at every point.
    """

    op: str
    args: tuple[int, ...] = ()
    dtype: str = ""
    attributes: tuple[tuple[str, Any], ...] = ()

    def __eq__(self, other: object) -> bool:
        """Constants are the same as they are written: 0.0 and -0.0, which are equal, are not."""
        if not isinstance(other, Instr):
            return NotImplemented
        same = (self.op, self.args, self.dtype, self.attributes) == (
            other.op,
            other.args,
            other.dtype,
            other.attributes,
        )
        return same and (self.op != "constant" or str(self["value"]) == str(other["value"]))

    def __getitem__(self, name: str) -> Any:
        for key, value in self.attributes:
            if key == name:
                return value
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        return next((value for key, value in self.attributes if key == name), default)


@dataclass(frozen=True)
class Schedule:
    """A template's parameters, e.g. ``(("mr", 6), ("nr", 64))``; which exist is the template's to say."""

    parameters: tuple[tuple[str, int | str], ...] = ()

    def __getitem__(self, name: str) -> Any:
        return dict(self.parameters)[name]

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.parameters).get(name, default)


@dataclass(frozen=True)
class KernelSpec:
    """See the module's docstring. ``template`` names the emitter: ``loops``, ``contraction``, ``block``, ``attention``, ``scan`` or
    ``scatter``. ``stages``: of a ``block``; each has a schedule of its own.
    """

    template: str
    dims: tuple[Dim, ...]
    operands: tuple[Operand, ...]
    body: tuple[Instr, ...]
    symbols: tuple[str, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    schedule: Schedule = field(default=Schedule())
    stages: tuple[KernelSpec, ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        parts = (self.template, self.dims, self.operands, self.body, self.symbols, self.attributes, self.schedule)
        return hash((parts, self.stages))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_hash"}  # it holds in this process alone

    def get(self, name: str, default: Any = None) -> Any:
        """A template's attribute."""
        return next((value for key, value in self.attributes if key == name), default)

    def with_schedule(self, **parameters: int | str) -> KernelSpec:
        return replace(self, schedule=Schedule(tuple(sorted(parameters.items()))))

    def to_json(self) -> dict[str, Any]:
        return {
            "template": self.template,
            "dims": [[str(d.size), d.kind] for d in self.dims],
            "operands": [o.to_json() for o in self.operands],
            "body": [[i.op, list(i.args), i.dtype, _attributes_out(i.attributes)] for i in self.body],
            "symbols": list(self.symbols),
            "attributes": _attributes_out(self.attributes),
            "schedule": _attributes_out(self.schedule.parameters),
            **({"stages": [s.to_json() for s in self.stages]} if self.stages else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> KernelSpec:
        """The spec that ``to_json`` wrote; KeyError, TypeError or ValueError where ``data`` is not one."""
        return KernelSpec(
            template=data["template"],
            dims=tuple(Dim(as_expr(size), kind) for size, kind in data["dims"]),
            operands=tuple(map(Operand.from_json, data["operands"])),
            body=tuple(Instr(op, tuple(args), dtype, _attributes_in(attrs)) for op, args, dtype, attrs in data["body"]),
            symbols=tuple(data["symbols"]),
            attributes=_attributes_in(data["attributes"]),
            schedule=Schedule(_attributes_in(data["schedule"])),
            stages=tuple(map(KernelSpec.from_json, data.get("stages", ()))),
        )

    def digest(self) -> str:
        """A hash of the content: equal specs, and only they, share it."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:32]

    def key(self) -> str:
        """A hash that specs of one computation share, whatever their schedule and what follows from it."""
        return self._unscheduled().digest()

    def _unscheduled(self) -> KernelSpec:
        operands = (o for o in self.operands if o.role != "scratch")
        plain = tuple(replace(o, size=as_expr(0)) if o.role == "packed" else o for o in operands)
        stages = tuple(stage._unscheduled() for stage in self.stages)
        return replace(self, operands=plain, schedule=Schedule(), stages=stages)

    def levels(self) -> tuple[int, ...]:
        """For each instruction the number of leading dims it varies with: 0 = invariant, ``len(dims)`` = every point."""
        parallel = sum(d.kind == "parallel" for d in self.dims)
        position = {f"d{i}": i + 1 for i in range(len(self.dims))}
        found: list[int] = []
        for instr in self.body:
            level = max((found[a] for a in instr.args), default=0)
            for _, value in instr.attributes:
                if isinstance(value, Expr):
                    for name in value.variables():
                        if name in position:
                            level = max(level, position[name])
                        elif name[0] == "v" and name[1:].isdigit():
                            level = max(level, found[int(name[1:])])
            if instr.op in ("reduce", "contract"):
                level = parallel  # also where the operand does not vary: the sum still runs over the reduction dims
            found.append(level)
        return tuple(found)


def _attributes_out(attributes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return {
        k: {"expr": str(v)} if isinstance(v, Expr) else list(v) if isinstance(v, tuple) else v for k, v in attributes
    }


def _attributes_in(data: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return as_expr(value["expr"])
        return tuple(value) if isinstance(value, list) else value

    return tuple((k, one(v)) for k, v in sorted(data.items()))
