"""Evaluates graph IR in torch, with no code generation: the reference of what a module means.

``evaluate(text, arguments, symbols)`` parses and verifies the module and walks ``@main``. A ``linalg.generic`` is computed over
its whole index space at once: each loop dimension is an ``arange`` along its own axis, bodies are torch ops on broadcast values.
``tensor.empty`` is poisoned, so that reading it shows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from graph_ir_scalars import DTYPES, read_constant, scalar, unsigned
from torch_mlir import ir


def evaluate(text: str, arguments: Sequence[torch.Tensor], symbols: Mapping[str, int]) -> list[torch.Tensor]:
    """The results of ``@main``; i8 results are int8 (view them as uint8 where torch says so). IndexError from ``effc.check``."""
    with ir.Context() as context, ir.Location.unknown():
        context.allow_unregistered_dialects = True
        module = ir.Module.parse(text)
        if not module.operation.verify():
            raise AssertionError("the module does not verify")
        main = next(op for op in module.body.operations if op.operation.attributes["sym_name"].value == "main")
        block = main.regions[0].blocks[0]
        values: dict[ir.Value, Any] = {}
        given = iter(arguments)
        for argument, attributes in zip(block.arguments, main.arg_attrs, strict=True):
            entries = ir.DictAttr(attributes)
            if "effc.symbol" in entries:
                values[argument] = torch.tensor(symbols[ir.StringAttr(entries["effc.symbol"]).value])
            else:
                tensor = next(given)
                values[argument] = tensor.view(torch.int8) if tensor.dtype == torch.uint8 else tensor
        for op in block.operations:
            if op.operation.name == "func.return":
                return [values[v] for v in op.operation.operands]
            run(op.operation, values)
    raise AssertionError("no return")


def run(op: ir.Operation, values: dict[ir.Value, Any]) -> None:
    """Evaluate one operation of the function's block."""
    handler = OPS.get(op.name)
    if handler is not None:
        results = handler(op, *(values[v] for v in op.operands))
    elif op.name == "linalg.generic":
        results = generic(op, values)
    else:
        results = scalar(op, [values[v] for v in op.operands], values, {})
    for result, value in zip(op.results, results if isinstance(results, list) else [results], strict=True):
        check_type(op, result, value)
        values[result] = value


def check_type(op: ir.Operation, result: ir.Value, value: torch.Tensor) -> None:
    """The value must have the dtype and the static sizes of its MLIR type."""
    if not isinstance(result.type, ir.RankedTensorType):
        return
    declared = result.type
    sizes = [None if declared.is_dynamic_dim(i) else declared.get_dim_size(i) for i in range(declared.rank)]
    fits = len(sizes) == value.dim() and all(s is None or s == v for s, v in zip(sizes, value.shape, strict=True))
    if not fits or value.dtype != DTYPES[str(declared.element_type)]:
        raise AssertionError(f"{op.name} gave {value.dtype} {tuple(value.shape)}, its type is {declared}")


# -- attributes ---------------------------------------------------------------------------------------------------------
def integers(op: ir.Operation, name: str) -> list[int]:
    return [int(v) for v in re.findall(r"-?\d+", re.sub(r"array<i\d+:?|: ?\w+", "", str(op.attributes[name])))]


def maps_of(op: ir.Operation, name: str = "indexing_maps") -> list[list[str]]:
    return [read_map(str(m)) for m in op.attributes[name]]


@cache
def read_map(text: str) -> list[str]:
    """The result expressions of an ``affine_map`` over dimensions, as Python."""
    body = text[text.index("->") + 2 :].strip().rstrip(">").strip()[1:-1]
    return [part.strip() for part in body.split(",")] if body.strip() else []


def mixed(op: ir.Operation, name: str, operands: Sequence[torch.Tensor]) -> list[int]:
    """A static list with its dynamic entries filled in from ``operands``."""
    dynamic = iter(operands)
    sentinel = ir.ShapedType.get_dynamic_size()
    return [int(next(dynamic)) if v == sentinel else v for v in integers(op, name)]


def segments(op: ir.Operation, operands: Sequence[Any]) -> list[list[Any]]:
    out, position = [], 0
    for count in integers(op, "operandSegmentSizes"):
        out.append(list(operands[position : position + count]))
        position += count
    return out


# -- tensor ops -----------------------------------------------------------------------------------------------------------
def empty(op: ir.Operation, *dynamic: torch.Tensor) -> torch.Tensor:
    kind = ir.RankedTensorType(op.results[0].type)
    given = iter(dynamic)
    sizes = [int(next(given)) if kind.is_dynamic_dim(i) else kind.get_dim_size(i) for i in range(kind.rank)]
    dtype = DTYPES[str(kind.element_type)]
    poison = math.nan if dtype.is_floating_point else True if dtype == torch.bool else torch.iinfo(dtype).max - 1
    return torch.full(sizes, poison, dtype=dtype)


def collapse(op: ir.Operation, x: torch.Tensor) -> torch.Tensor:
    groups = [[int(str(d).split()[0]) for d in group] for group in op.attributes["reassociation"]]
    return x.reshape([math.prod(x.shape[d] for d in group) for group in groups])


def expand(op: ir.Operation, x: torch.Tensor, *dynamic: torch.Tensor) -> torch.Tensor:
    return x.reshape(mixed(op, "static_output_shape", dynamic))


def slices(op: ir.Operation, operands: Sequence[Any], rank: int) -> tuple[slice, ...]:
    offsets, sizes, strides = (
        mixed(op, f"static_{name}", part) for name, part in zip(("offsets", "sizes", "strides"), operands, strict=True)
    )
    return tuple(slice(o, o + (n - 1) * s + 1 if n else o, s) for o, n, s in zip(offsets, sizes, strides, strict=True))


def extract_slice(op: ir.Operation, *operands: Any) -> torch.Tensor:
    (x,), *rest = segments(op, operands)
    taken: torch.Tensor = x[slices(op, rest, x.dim())]
    kind = ir.RankedTensorType(op.results[0].type)
    if kind.rank < taken.dim():  # rank-reducing: the importer drops one dimension, by the position of a static size 1
        sizes = mixed(op, "static_sizes", rest[1])
        wanted = [None if kind.is_dynamic_dim(i) else kind.get_dim_size(i) for i in range(kind.rank)]
        dropped = next(
            d
            for d in range(len(sizes))
            if sizes[d] == 1
            and all(w is None or w == s for w, s in zip(wanted, sizes[:d] + sizes[d + 1 :], strict=True))
        )
        taken = taken.squeeze(dropped)
    return taken


def insert_slice(op: ir.Operation, *operands: Any) -> torch.Tensor:
    (source,), (x,), *rest = segments(op, operands)
    out: torch.Tensor = x.clone()
    place = slices(op, rest, x.dim())
    out[place] = source.reshape(out[place].shape)
    return out


def pad(op: ir.Operation, *operands: Any) -> torch.Tensor:
    (x,), low, high = segments(op, operands)
    lows, highs = mixed(op, "static_low", low), mixed(op, "static_high", high)
    constant = op.regions[0].blocks[0].operations[0].operation.operands[0].owner
    value = read_constant(constant)
    out = torch.full([n + a + b for n, a, b in zip(x.shape, lows, highs, strict=True)], 0, dtype=x.dtype)
    out[...] = value
    out[tuple(slice(a, a + n) for a, n in zip(lows, x.shape, strict=True))] = x
    return out


def transpose(op: ir.Operation, x: torch.Tensor, _init: torch.Tensor) -> torch.Tensor:
    return x.permute(integers(op, "permutation"))


def contract(op: ir.Operation, x: torch.Tensor, y: torch.Tensor, init: torch.Tensor) -> torch.Tensor:
    letters = [" ".join(m).replace("d", "") for m in maps_of(op)]
    names = [[int(v) for v in part.split()] for part in letters]
    product = torch.einsum(x.to(init.dtype), names[0], y.to(init.dtype), names[1], names[2])
    return product + init


# -- the effc dialect -------------------------------------------------------------------------------------------------------
def word(op: ir.Operation, name: str) -> str:
    value: str = ir.StringAttr(op.attributes[name]).value
    return value


def number(op: ir.Operation, name: str) -> int:
    value: int = ir.IntegerAttr(op.attributes[name]).value
    return value


def argreduce(op: ir.Operation, x: torch.Tensor) -> torch.Tensor:
    return (torch.argmax if word(op, "kind") == "max" else torch.argmin)(x, number(op, "dim"))


def scan(op: ir.Operation, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
    dim, kind = number(op, "dim"), word(op, "kind")
    if kind in ("max", "min"):
        return list((torch.cummax if kind == "max" else torch.cummin)(x, dim))
    if kind == "logaddexp":
        return torch.logcumsumexp(x, dim)
    return (torch.cumsum if kind == "add" else torch.cumprod)(x, dim, dtype=x.dtype)


def scatter(op: ir.Operation, base: torch.Tensor, updates: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
    axes = loop_axes(list(updates.shape))
    tables = [at(i, m, axes) for i, m in zip(indices, maps_of(op, "index_maps"), strict=True)]
    out = base.clone()
    flat = torch.zeros(1, dtype=torch.int64)
    outside = torch.zeros(1, dtype=torch.bool)
    for size, c in zip(base.shape, integers(op, "coordinates"), strict=True):
        coordinate = axes[f"d{c}"] if c >= 0 else tables[-1 - c]
        outside = outside | (coordinate < 0) | (coordinate >= size)
        flat = flat * size + coordinate
    positions = flat.expand(updates.shape).reshape(-1)
    values, memory = updates.reshape(-1), out.view(-1)
    if bool(outside.any()):
        raise IndexError("effc.scatter: index out of range")
    reduction = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}.get(word(op, "kind"))
    if reduction is None:
        for p, v in zip(positions.tolist(), values, strict=True):  # in order: the last wins
            memory[p] = v
    else:
        memory.scatter_reduce_(0, positions, values, reduction, include_self=True)
    return out


def attention(
    op: ir.Operation, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *mask: torch.Tensor
) -> list[torch.Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) * ir.FloatAttr(op.attributes["scale"]).value
    if mask:
        scores = scores + mask[0].to(wide)
    if ir.BoolAttr(op.attributes["causal"]).value:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    sums = torch.logsumexp(scores, -1)
    nothing = math.nan if ir.BoolAttr(op.attributes["nan_rows"]).value else 0
    weights = torch.where(sums[..., None] == -math.inf, nothing, torch.exp(scores - sums[..., None]))
    return [(weights @ v.to(wide)).to(q.dtype), sums][: len(op.results)]


OPS: dict[str, Callable[..., Any]] = {
    "tensor.empty": empty,
    "tensor.collapse_shape": collapse,
    "tensor.expand_shape": expand,
    "tensor.extract_slice": extract_slice,
    "tensor.insert_slice": insert_slice,
    "tensor.pad": pad,
    "tensor.concat": lambda op, *parts: torch.cat(parts, number(op, "dim")),
    "tensor.cast": lambda op, x: x,
    "linalg.fill": lambda op, value, init: torch.full_like(init, 0).copy_(value),
    "linalg.transpose": transpose,
    "linalg.contract": contract,
    "linalg.broadcast": lambda op, x, init: x.reshape(
        [1 if d in integers(op, "dimensions") else s for d, s in enumerate(init.shape)]
    ).expand(init.shape),
    "effc.argreduce": argreduce,
    "effc.scan": scan,
    "effc.scatter": scatter,
    "effc.attention": attention,
}


# -- linalg.generic -----------------------------------------------------------------------------------------------------------
def loop_axes(sizes: Sequence[int]) -> dict[str, torch.Tensor]:
    """Loop variable -> its values along its own axis."""
    n = len(sizes)
    return {f"d{i}": torch.arange(s).reshape([s if j == i else 1 for j in range(n)]) for i, s in enumerate(sizes)}


def at(x: torch.Tensor, expressions: Sequence[str], axes: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``x`` at the places that the map's ``expressions`` give, broadcastable over the loops."""
    if not expressions:
        return x.reshape([1] * len(axes))
    places = [torch.as_tensor(eval(e.replace("floordiv", "//").replace("mod", "%"), dict(axes))) for e in expressions]
    if x.numel() == 0:
        shape = torch.broadcast_shapes(*(p.shape for p in places))
        return x.new_empty([0 if s == 0 else s for s in shape] if 0 in shape else [0] * len(shape))
    return x[tuple(p.reshape([1] * (len(axes) - p.dim()) + list(p.shape)) for p in places)]


def generic(op: ir.Operation, values: dict[ir.Value, Any]) -> torch.Tensor:
    maps = maps_of(op)
    tensors = [values[v] for v in op.operands]
    kinds = re.findall(r"parallel|reduction", str(op.attributes["iterator_types"]))
    sizes: dict[str, int] = {}
    for x, m in zip(tensors, maps, strict=True):
        for size, e in zip(x.shape, m, strict=True):
            if re.fullmatch(r"d\d+", e) and sizes.setdefault(e, size) != size:
                raise AssertionError(f"{op.name}: {e} has the sizes {sizes[e]} and {size}")
    shape = [sizes[f"d{i}"] for i in range(len(kinds))]
    axes = loop_axes(shape)
    block = op.regions[0].blocks[0]
    local = dict(zip(block.arguments, (at(x, m, axes) for x, m in zip(tensors, maps, strict=True)), strict=True))
    accumulator = block.arguments[len(tensors) - 1]
    reduced = [i for i, k in enumerate(kinds) if k == "reduction"]
    operations = list(block.operations)
    combine = operations[-1].operation.operands[0].owner if reduced else None
    value: Any = None
    for inner in operations[:-1]:
        inner = inner.operation
        operands: list[Any] = [local[v] if v in local else values[v] for v in inner.operands]
        if combine is not None and inner == combine:
            (other,) = [o for v, o in zip(inner.operands, operands, strict=True) if v != accumulator]
            value = fold(inner.name, other.expand(shape), local[accumulator], reduced)
        elif combine is not None and accumulator in list(inner.operands):
            raise AssertionError("a reduction's body combines once")
        else:
            result = scalar(inner, operands, values, axes)
            if result is not None:
                local[inner.results[0]] = result
    if combine is None:
        yielded = operations[-1].operation.operands[0]
        value = torch.as_tensor(local[yielded] if yielded in local else values[yielded])
    value = value.reshape([1] * (len(shape) - value.dim()) + list(value.shape))
    spread: torch.Tensor = value.expand([1 if i in reduced else s for i, s in enumerate(shape)])
    order = [int(e[1:]) for e in maps[-1]]
    return spread.permute([*order, *reduced]).reshape([shape[d] for d in order])


def fold(name: str, value: torch.Tensor, init: torch.Tensor, dims: list[int]) -> torch.Tensor:
    """Reduce ``value`` over ``dims`` with the op ``name``, starting from ``init``."""
    kind = name.split(".")[1]
    if any(value.shape[d] == 0 for d in dims):
        return init
    if kind in ("addf", "addi"):
        return torch.sum(value, dims, keepdim=True, dtype=value.dtype) + init
    if kind in ("mulf", "muli"):
        for d in dims:
            value = torch.prod(value, d, keepdim=True, dtype=value.dtype)
        return value * init
    if kind in ("maximumf", "maxsi", "minimumf", "minsi"):
        reduce, pair = (torch.amax, torch.maximum) if kind.startswith("max") else (torch.amin, torch.minimum)
        return pair(reduce(value, dims, keepdim=True), init)
    if kind in ("maxui", "minui"):
        reduce, pair = (torch.amax, torch.maximum) if kind.startswith("max") else (torch.amin, torch.minimum)
        return pair(reduce(unsigned(value), dims, keepdim=True), unsigned(init)).to(value.dtype)
    if kind in ("andi", "ori") and value.dtype == torch.bool:
        for d in dims:
            value = (torch.all if kind == "andi" else torch.any)(value, d, keepdim=True)
        return value & init if kind == "andi" else value | init
    raise AssertionError(f"no fold for {name}")
