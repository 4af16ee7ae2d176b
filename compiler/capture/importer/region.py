"""FX nodes -> one module of graph IR as text (the contract is in docs/architecture.md, "Graph IR").

Tensors are values: views become ops on values, strides matter only at the border. Every node is written by the lowering that
its overload has in ``registry.LOWERINGS``; a lowering that cannot express a case raises UnsupportedError, which is also how
``supported`` finds the reason (it writes the node into a scratch builder, from metadata alone).
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from effc.compiler.capture.importer.builder import Builder
from effc.compiler.capture.importer.registry import LOWERINGS, Op
from effc.compiler.capture.importer.types import Size, Tensor, as_quotient, as_size
from effc.compiler.capture.nodes import Known
from effc.compiler.capture.source import source_of
from effc.compiler.ir.errors import UnsupportedError
from effc.compiler.ir.expr import Expr, var
from effc.runtime.dtypes import DTYPE_NAMES


@dataclass(frozen=True)
class SymbolSource:
    """Where a symbol's value comes from: the SymInt ``node`` itself (``dim`` None), or size ``dim`` of the tensor ``node``."""

    node: Node
    dim: int | None


@dataclass(frozen=True)
class Region:
    """A region as graph IR.

    ``inputs`` are the tensor arguments of ``@main`` in order (after the symbols), ``outputs`` its results in order;
    ``op_counts`` counts the ATen ops by name.
    """

    text: str
    symbols: tuple[str, ...]
    symbol_sources: tuple[SymbolSource, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    op_counts: Mapping[str, int]


def supported(node: Node) -> str | None:
    """None where the importer can write ``node``, else the reason in plain words. Looks at metadata only."""
    value = node.meta.get("val")
    if isinstance(value, (torch.SymInt, int)) and not isinstance(value, bool):
        return _reason(lambda: as_size(value))
    if isinstance(value, torch.SymFloat):
        return _reason(lambda: as_quotient(value))
    if node.op != "call_function":
        return f"a {node.op} node is no operation"
    if node.target is operator.getitem:
        source = node.args[0]
        return supported(source) if isinstance(source, Node) else "an item of something that is no node"
    if node.target not in LOWERINGS:
        return f"effc has no lowering for {node.target}"

    def attempt() -> None:
        b = Builder()
        known = {n: _placeholder(f"%a{i}", n) for i, n in enumerate(node.all_input_nodes) if not _is_scalar(n)}
        _lower(b, node, known)

    return _reason(attempt)


def import_region(
    nodes: Sequence[Node],
    inputs: Sequence[Node],
    outputs: Sequence[Node],
    *,
    params: Mapping[Node, str],
    mutations: Mapping[Node, Node],
    name: str,
    known: Known | None = None,
) -> Region:
    """Write ``nodes`` (in topological order) as a module named ``name`` with the public function ``@main``.

    ``inputs``: the nodes that the region reads: tensors, and SymInts where symbols come from. ``params``: names of those that
    are parameters or buffers. ``mutations``: output node -> the input that it overwrites (an ``aten.copy_`` node, or the node
    whose value is written). ``known``: of the inputs. UnsupportedError names the op, its place and the reason.
    """
    known = known or Known()
    b = Builder()
    tensors = [n for n in inputs if not _is_scalar(n)]
    values: dict[Node, Any] = {n: _placeholder(f"%a{i}", n) for i, n in enumerate(tensors)}
    counts: Counter[str] = Counter()
    for node in nodes:
        if node.op != "call_function" or _is_scalar(node):
            continue
        source = source_of(node)
        b.set_location(*source.location())
        try:
            values[node] = _lower(b, node, values)
        except UnsupportedError as err:
            raise UnsupportedError(f"{node.target} at {source} ({node.name}): {err}") from err
        if node.target is not operator.getitem:
            counts[str(node.target)] += 1

    arguments = []
    for node in tensors:
        sizes, strides = _placement(node)
        extra = f', effc.param = "{params[node]}"' if node in params else ""
        if node in known.ranges:
            extra += f", effc.range = array<i64: {known.ranges[node][0]}, {known.ranges[node][1]}>"
        if node in known.tables:
            extra += f", effc.values = array<f64: {', '.join(f'{v:.17e}' for v in known.tables[node])}>"
        if node in known.sparsities:
            found = known.sparsities[node]
            extra += f", effc.sparsity = {found.encoding}, effc.stored = {found.stored} : i64"
        if node in known.shares:
            extra += f", effc.share = {known.shares[node]:.17e} : f64"
        v = values[node]
        arguments.append(
            f"{v.name}: {v.type} {{effc.sizes = {_texts(sizes)}, effc.strides = {_texts(strides)}{extra}}}"
        )
        b.symbols |= {s for e in (*sizes, *strides) if isinstance(e, Expr) for s in e.variables()}
    results = []
    for node in outputs:
        target = mutations.get(node)
        strides = _placement(node if target is None else target)[1]
        extra = "" if target is None else f", effc.mutates = {tensors.index(target)} : i64"
        results.append(f"{values[node].type} {{effc.strides = {_texts(strides)}{extra}}}")
        b.symbols |= {s for e in strides if isinstance(e, Expr) for s in e.variables()}
    symbols = tuple(sorted(b.symbols, key=lambda s: (len(s), s)))
    heads = [f'%{s}: index {{effc.symbol = "{s}"}}' for s in symbols]
    returned = [values[n] for n in outputs]
    tail = f" {', '.join(v.name for v in returned)} : {', '.join(v.type for v in returned)}" if returned else ""
    text = "\n".join(
        [
            f"module @{_identifier(name)} {{",
            *b.declarations.values(),
            f"  func.func @main({', '.join([*heads, *arguments])}) -> ({', '.join(results)}) {{",
            *b.header,
            *b.lines,
            f"    return{tail} loc(unknown)",
            "  }",
            "}",
            *b.location_aliases(),
            "",
        ]
    )
    return Region(text, symbols, _sources(symbols, inputs), tuple(tensors), tuple(outputs), counts)


# -- internals ------------------------------------------------------------------------------------------------------
def _reason(attempt: Any) -> str | None:
    try:
        attempt()
    except UnsupportedError as err:
        return str(err)
    return None


def _lower(b: Builder, node: Node, values: Mapping[Node, Any]) -> Any:
    if node.target is operator.getitem:
        source, position = node.args
        assert isinstance(source, Node)
        assert isinstance(position, int)
        item = values[source][position]
        if item is None:
            raise UnsupportedError(f"result {position} of {source.target}")
        return item
    lowering = LOWERINGS.get(node.target)
    if lowering is None:
        raise UnsupportedError(f"effc has no lowering for {node.target}")
    meta = node.meta["val"]
    metas = list(meta) if isinstance(meta, (tuple, list)) else [meta]
    used = frozenset(range(len(metas)))
    if isinstance(meta, (tuple, list)):
        used = frozenset(u.args[1] for u in node.users if u.target is operator.getitem)  # type: ignore[misc]
    described = [_describe(m if i in used or _is_plain(m) else None) for i, m in enumerate(metas)]
    op = Op(b, str(node.target), tuple(d[0] for d in described), tuple(d[1] for d in described), used, node)
    args = [_resolve(a, values) for a in node.args]
    kwargs = {k: _resolve(a, values) for k, a in node.kwargs.items()}
    result = lowering(op, *args, **kwargs)
    if isinstance(result, Tensor) and (result.dtype != op.dtype or len(result.sizes) != len(op.sizes)):
        raise AssertionError(f"{node.target} gave {result.type}, torch says {op.dtype} {op.sizes}")
    return result


def _resolve(a: Any, values: Mapping[Node, Any]) -> Any:
    if isinstance(a, Node):
        if a in values:
            return values[a]
        value = a.meta["val"]
        if isinstance(value, torch.SymFloat):
            return as_quotient(value)
        return as_size(value)
    if isinstance(a, (list, tuple)):
        return [_resolve(x, values) for x in a]
    if isinstance(a, torch.SymInt):
        return as_size(a)
    return a


def _is_scalar(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int, float))


def _describe(meta: Any) -> tuple[torch.dtype, tuple[Size, ...]]:
    if meta is None:
        return torch.float32, ()
    if not isinstance(meta, torch.Tensor):
        raise UnsupportedError(f"a value of type {type(meta).__name__}")
    _check_kind(meta)
    return meta.dtype, tuple(as_size(s) for s in meta.shape)


def _is_plain(meta: Any) -> bool:
    return isinstance(meta, torch.Tensor) and meta.dtype in DTYPE_NAMES


def _check_kind(meta: torch.Tensor) -> None:
    if meta.dtype not in DTYPE_NAMES:
        raise UnsupportedError(f"dtype {str(meta.dtype).removeprefix('torch.')}")
    if meta.layout != torch.strided:
        raise UnsupportedError(f"layout {str(meta.layout).removeprefix('torch.')}")


def _placeholder(name: str, node: Node) -> Any:
    meta = node.meta.get("val")
    if isinstance(meta, (tuple, list)):
        return [Tensor(f"{name}_{i}", *_describe(m)) for i, m in enumerate(meta)]
    dtype, sizes = _describe(meta)
    return Tensor(name, dtype, sizes)


def _placement(node: Node) -> tuple[tuple[Size, ...], tuple[Size, ...]]:
    meta = node.meta["val"]
    return tuple(as_size(s) for s in meta.shape), tuple(as_size(s) for s in meta.stride())


def _texts(sizes: Sequence[Size]) -> str:
    return "[" + ", ".join(f'"{s}"' for s in sizes) + "]"


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", name) or "region"


def _sources(symbols: Sequence[str], inputs: Sequence[Node]) -> tuple[SymbolSource, ...]:
    found: dict[str, SymbolSource] = {}
    for node in inputs:
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            candidates: list[tuple[int | None, int | Expr]] = [(None, as_size(value))]
        elif isinstance(value, torch.Tensor):
            candidates = [(d, as_size(s)) for d, s in enumerate(value.shape)]
        else:
            continue
        for dim, size in candidates:
            for symbol in symbols:
                if size == var(symbol) and (symbol not in found or dim is None):
                    found[symbol] = SymbolSource(node, dim)
    missing = [s for s in symbols if s not in found]
    if missing:
        raise UnsupportedError(
            f"no input of the region has the size {', '.join(missing)}; pass its SymInt node as an input"
        )
    return tuple(found[s] for s in symbols)
