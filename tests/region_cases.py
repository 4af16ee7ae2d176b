"""Programs for tests of regions: kernels written as equations, or those of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from effc.compiler.capture.backend import compile_with
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.options import Options
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.compiler.pipeline.dataflow import Dataflow
from effc.compiler.pipeline.lower import kernels_of
from effc.compiler.pipeline.placed import Kernel, Site
from effc.compiler.pipeline.placement import Base

_EQUATION = re.compile(r"(?P<results>[\w, ]+)=\s*(?P<function>\w+)\((?P<operands>[\w, ]*)\)(?:\s*\+\s*(?P<added>\w+))?")


class Equations:
    """``Equations("a = sum(x)", "y = sum(a) + x")``: a kernel an equation. ``x…`` are inputs, ``w…`` parameters, ``y…`` outputs, all else
    buffers; what is both read and written is updated in place. Functions: ``sum``; ``map``, element by element; ``fill``, of nothing;
    ``attention`` and ``dynamic``, which are no layers; what is behind ``+`` is added element by element.
    """

    def __init__(self, *equations: str) -> None:
        self.bases: dict[str, Base] = {}
        kernels = [self._kernel(equation) for equation in equations]
        self.flow = Dataflow(kernels, {base for name, base in self.bases.items() if name[0] == "w"})

    def _base(self, name: str) -> Base:
        kind = {"x": "input", "w": "input", "y": "output"}.get(name[0], "buffer")
        return self.bases.setdefault(name, Base(kind, len(self.bases)))

    def names(self, bases: Sequence[Base]) -> str:
        back = {base: name for name, base in self.bases.items()}
        return " ".join(back[base] for base in bases)

    def _kernel(self, equation: str) -> Kernel:
        found = _EQUATION.fullmatch(equation)
        assert found is not None, equation
        results, operands = (re.findall(r"\w+", found[part]) for part in ("results", "operands"))
        added, function = found["added"], found["function"]
        read = [*operands, *([added] if added else [])]
        names = list(dict.fromkeys([*read, *results]))
        roles = {n: "readwrite" if n in read and n in results else "write" if n in results else "read" for n in names}
        body = list[Instr]()

        def add(op: str, *args: int, dtype: str = "f32", **attributes: Any) -> int:
            body.append(Instr(op, args, dtype, tuple(attributes.items())))
            return len(body) - 1

        def load(name: str) -> int:
            return add("load", operand=names.index(name), address=as_expr("d0"))

        value = load(operands[0]) if operands else add("constant", value=0.0)
        for name in operands[1:]:
            value = add("arith.mulf", value, load(name))
        if function != "map":
            value = add("reduce", value, kind="add")
        if added:
            value = add("arith.addf", value, load(added))
        for name in results:
            add("store", value, dtype="", operand=names.index(name), address=as_expr("d0"))
        size = as_expr("s0" if function == "dynamic" else 8)
        spec = KernelSpec(
            "attention" if function == "attention" else "loops",
            (Dim(size), Dim(as_expr(4), "reduction")),
            tuple(Operand("f32", roles[n], size) for n in names),
            tuple(body),
            ("s0",) if function == "dynamic" else (),
        )
        sites = tuple(Site(self._base(n), as_expr(0), "f32") for n in names)
        return Kernel(spec, sites, (), equation, "")


class _Captured(Exception):
    """The graph IR of a model's only region."""


def flow_of(model: Callable[..., Any], *inputs: Any, dynamic: bool = False, target: str = "avx512") -> Dataflow:
    """What flows in ``model``, all of which is one region; nothing is compiled."""

    def build(text: str) -> Any:
        raise _Captured(text)

    def backend(gm: Any, given: list[Any]) -> Any:
        return compile_with(gm, given, Options(fallback="error"), lambda options: build)

    torch._dynamo.reset()
    text = ""
    try:
        with torch.no_grad():
            torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)(*inputs)
    except Exception as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, _Captured):
            behind = behind.__cause__ or behind.__context__
        if behind is None:
            raise
        text = str(behind)
    return Dataflow(*kernels_of(text, Target.named(target)))
