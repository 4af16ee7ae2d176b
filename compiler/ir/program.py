"""``Program``: what the compiler hands to the runtime for one region. Plain data, JSON both ways; it holds no code and no weights.

A program is a list of kernel calls over pointers. A pointer names a base (an input, a derived weight, an output, or the arena)
and a byte offset; offsets and sizes are ``Expr`` over the region's symbols, so one program serves every size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effc.compiler.ir.expr import Expr, as_expr
from effc.compiler.ir.spec import KernelSpec


@dataclass(frozen=True)
class TensorSpec:
    """Type and placement of a tensor at the region's border: sizes and strides in elements; ``dtype`` as MLIR spells it."""

    dtype: str
    sizes: tuple[Expr, ...]
    strides: tuple[Expr, ...]


@dataclass(frozen=True)
class Input:
    """A tensor argument. ``param``: its name in the model where it is a parameter or buffer, else ``""``."""

    tensor: TensorSpec
    param: str = ""


@dataclass(frozen=True)
class Output:
    """A result. ``mutates`` is the input that the program updates in place instead of returning a new tensor, or None."""

    tensor: TensorSpec
    mutates: int | None = None


@dataclass(frozen=True)
class Derived:
    """A tensor computed from parameters once, and again when they change: a pure function of its source.

    ``source``: ``("input", i)``, ``("prepared", i)``, the i-th output of ``Program.prepare``, or ``("joined", i)``, of
    ``Program.joined``. ``function`` is a name in ``effc.runtime.derive``; ``attributes`` are its keyword arguments (ints, strings,
    tuples of ints).
    """

    function: str
    source: tuple[str, int]
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Part:
    """A view of the memory of ``source``, an input or prepared: ``offset``, ``sizes`` and ``strides`` in elements."""

    source: tuple[str, int]
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Joined:
    """Tensors one behind the other along their first dimension, row-major. It is made where something is derived from it, and not kept."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Pointer:
    """``base``: ``input``, ``derived``, ``output`` or ``arena``; ``index``: which one (0 for the arena); ``offset`` in bytes."""

    base: str
    index: int
    offset: Expr


@dataclass(frozen=True)
class Call:
    """One kernel call: a pointer for each operand of ``kernels[kernel]``, a value for each of its symbols.

    ``name`` is readable (``conv+relu``), ``location`` the user's source line (``model.py:12``), ``flops`` the arithmetic.
    """

    kernel: int
    pointers: tuple[Pointer, ...]
    symbols: tuple[Expr, ...]
    name: str = ""
    location: str = ""
    flops: Expr = Expr(())


@dataclass(frozen=True)
class Program:
    """See the module's docstring. ``prepare`` computes, from the inputs that are parameters, the sources of ``derived``.

    ``notes``: sentences for the report, each from the place in the user's model on: what could not be fused, and why.
    """

    symbols: tuple[str, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    derived: tuple[Derived, ...]
    kernels: tuple[KernelSpec, ...]
    calls: tuple[Call, ...]
    arena_bytes: Expr
    prepare: Program | None = None
    notes: tuple[str, ...] = ()
    joined: tuple[Joined, ...] = ()

    @property
    def parts(self) -> list[Program]:
        """Itself, and the program that prepares its weights."""
        return [self] if self.prepare is None else [self, self.prepare]

    def to_json(self) -> dict[str, Any]:
        return {
            "symbols": list(self.symbols),
            "inputs": [[_tensor_out(i.tensor), i.param] for i in self.inputs],
            "outputs": [[_tensor_out(o.tensor), o.mutates] for o in self.outputs],
            "derived": [
                [d.function, list(d.source), {k: list(v) if isinstance(v, tuple) else v for k, v in d.attributes}]
                for d in self.derived
            ],
            "kernels": [k.to_json() for k in self.kernels],
            "calls": [
                [
                    c.kernel,
                    [[p.base, p.index, str(p.offset)] for p in c.pointers],
                    [str(s) for s in c.symbols],
                    c.name,
                    c.location,
                    str(c.flops),
                ]
                for c in self.calls
            ],
            "arena_bytes": str(self.arena_bytes),
            "prepare": None if self.prepare is None else self.prepare.to_json(),
            "notes": list(self.notes),
            "joined": [
                [[list(p.source), p.offset, list(p.sizes), list(p.strides)] for p in j.parts] for j in self.joined
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Program:
        """The program that ``to_json`` wrote; KeyError, TypeError or ValueError where ``data`` is not one."""
        return Program(
            symbols=tuple(data["symbols"]),
            inputs=tuple(Input(_tensor_in(t), param) for t, param in data["inputs"]),
            outputs=tuple(Output(_tensor_in(t), mutates) for t, mutates in data["outputs"]),
            derived=tuple(
                Derived(
                    function,
                    (source[0], source[1]),
                    tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(attributes.items())),
                )
                for function, source, attributes in data["derived"]
            ),
            kernels=tuple(KernelSpec.from_json(k) for k in data["kernels"]),
            calls=tuple(
                Call(
                    kernel,
                    tuple(Pointer(base, index, as_expr(offset)) for base, index, offset in pointers),
                    tuple(as_expr(s) for s in symbols),
                    name,
                    location,
                    as_expr(flops),
                )
                for kernel, pointers, symbols, name, location, flops in data["calls"]
            ),
            arena_bytes=as_expr(data["arena_bytes"]),
            prepare=None if data["prepare"] is None else Program.from_json(data["prepare"]),
            notes=tuple(data["notes"]),
            joined=tuple(
                Joined(
                    tuple(
                        Part((source[0], source[1]), offset, tuple(sizes), tuple(strides))
                        for source, offset, sizes, strides in parts
                    )
                )
                for parts in data["joined"]
            ),
        )

    def digest(self) -> str:
        """A hash of the content."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:32]

    def origins(self, source: tuple[str, int]) -> tuple[tuple[str, int], ...]:
        """The inputs and prepared tensors behind the source of a derivation."""
        kind, index = source
        return tuple(p.source for p in self.joined[index].parts) if kind == "joined" else (source,)


def _tensor_out(t: TensorSpec) -> list[Any]:
    return [t.dtype, [str(s) for s in t.sizes], [str(s) for s in t.strides]]


def _tensor_in(data: list[Any]) -> TensorSpec:
    dtype, sizes, strides = data
    return TensorSpec(dtype, tuple(as_expr(s) for s in sizes), tuple(as_expr(s) for s in strides))
