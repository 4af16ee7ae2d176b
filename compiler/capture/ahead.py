"""Toolchain processes that start while AOTAutograd still traces: for a graph that the cache has not met, they will be needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from effc.compiler.build import digest, toolchain_key
from effc.compiler.ir.errors import ToolchainCrash
from effc.compiler.toolchain import toolchain
from effc.runtime.cache import Cache


def start_ahead(gm: GraphModule, code: Mapping[str, Any], cache: Cache) -> bool:
    """Start the processes, unless Dynamo's graph was met before, with these options; whether they were started.

    A guess: if the graph's programs are not in the cache any more, the processes start when they are asked for, as ever.
    """
    key = digest(*map(_text, gm.graph.nodes), json.dumps(code, sort_keys=True), toolchain_key())
    if cache.get("graphs", key) is not None:
        return False
    cache.put("graphs", key, b"met")
    try:
        toolchain().warm()
    except ToolchainCrash:  # whoever asks for a process is told
        return False
    return True


def _text(node: Node) -> str:
    """What the node does, and to what shape; names of functions, as their addresses differ from process to process."""
    value = node.meta.get("example_value")
    shape = (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else ""
    return f"{node.op} {getattr(node.target, '__name__', node.target)} {shape}"
