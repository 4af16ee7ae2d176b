"""A quantization behind ``concat`` or ``pad`` is done before it: its operands are then bytes, written by the kernels that compute them.

``quantize(concat(a, b))`` becomes ``concat(quantize(a), quantize(b))``, where nobody else reads the floats; exact, whatever the scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from effc.compiler.pipeline.evaluation import argument, constant_of, evaluate
from effc.compiler.pipeline.graph import Body, BodyInstr, Graph, Op, Tensor, replace_ops


def lift_quantizations(graph: Graph) -> None:
    """Move them as far up as they go; through one assembly at a time."""
    kept = {o.tensor for o in graph.outputs}
    while found := _next(graph, kept):
        assembly, steps = found
        made = _lifted(assembly, steps)
        replaced: dict[Op, Sequence[Op]] = {assembly: made, **dict.fromkeys(steps, ())}
        replace_ops(graph, replaced.get, lambda op: None)


def _next(graph: Graph, kept: set[Tensor]) -> tuple[Op, list[Op]] | None:
    """An assembly that only quantizations read, and their operations in order."""
    for op in graph.ops:
        if op.kind in ("concat", "pad") and op.results[0].dtype in ("f32", "bf16", "f16"):
            steps = _steps(op.results[0], kept)
            if steps and (op.kind == "concat" or _at_border(op, steps) is not None):
                return op, steps
    return None


def _steps(tensor: Tensor, kept: set[Tensor]) -> list[Op]:
    """The pointwise operations from ``tensor`` to bytes that are all that reads it; empty where others do too."""
    found: dict[Op, None] = {}
    pending = [tensor]
    while pending:
        source = pending.pop()
        if source in kept or not source.users:
            return []
        for op in source.users:
            number = argument(op)
            if number is None or op.operands[number] is not source:
                return []
            if op not in found:
                found[op] = None
                if op.results[0].dtype != "i8":
                    pending.append(op.results[0])
    return list(found)


def _lifted(assembly: Op, steps: Sequence[Op]) -> list[Op]:
    made: list[Op] = []
    parts = []
    for source in assembly.operands:
        values = {assembly.results[0]: source}
        for op in steps:
            number = argument(op)
            assert number is not None, "_steps has seen to it"
            moved = _moved(op, number, values[op.operands[number]])
            values[op.results[0]] = moved.results[0]
            made.append(moved)
        parts.append(values)
    for op in steps:
        result = op.results[0]
        if result.dtype == "i8":
            joined = Op(assembly.kind, [p[result] for p in parts], [result], assembly.location)
            joined.attributes = dict(assembly.attributes)
            joined.body = _at_border(assembly, steps, op) if assembly.kind == "pad" else None
            result.producer = joined
            made.append(joined)
    return made


def _moved(op: Op, number: int, source: Tensor) -> Op:
    """The pointwise ``op`` of another tensor than its operand ``number``."""
    sizes = dict(zip(map(str, op.maps[number]), source.sizes, strict=True))
    operands = [source if n == number else t for n, t in enumerate(op.operands)]
    result = Tensor("", op.results[0].dtype, source.sizes)
    dims = tuple(sizes[f"d{i}"] for i in range(len(op.dims)))
    made = Op(
        "generic", operands, [result], op.location, dims, op.iterators, op.maps, op.result_maps, op.body, dict(op.attributes)
    )  # fmt: skip
    result.producer = made
    return made


def _at_border(pad: Op, steps: Sequence[Op], last: Op | None = None) -> Body | None:
    """What ``last`` of the steps (default: any) makes of the number around a padded tensor; None where that is not known."""
    number = constant_of(pad.body) if pad.body is not None else None
    if number is None:
        return None
    values = {pad.results[0]: np.asarray(number, dtype=np.float32)}
    for op in steps:
        argument_ = argument(op)
        assert argument_ is not None, "_steps has seen to it"
        found = evaluate(op, {argument_: values[op.operands[argument_]]})
        if found is None:
            return None
        values[op.results[0]] = found
    byte = int(values[(last or steps[-1]).results[0]])
    return Body((BodyInstr("constant", (), "i8", (("value", byte),)),), (0,))
