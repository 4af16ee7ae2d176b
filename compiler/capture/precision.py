"""What compiled code depends on that Dynamo does not look at: torch's setting of TF32 for convolutions on a GPU."""

from __future__ import annotations

import torch
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.source import AttrSource, ImportSource
from torch._guards import Source, TracingContext

_SETTING = ("backends", "cudnn", "conv", "fp32_precision")


def guard_convolutions(nodes: list[torch.fx.Node]) -> None:
    """Have Dynamo compile anew when the setting changes, if there is a convolution of float32 among ``nodes``. Outside of Dynamo, and in
    a backward graph, whose forward graph has it, nothing is done.
    """
    context = TracingContext.try_get()
    if context is None or not any(map(_convolves, nodes)):
        return
    source: Source = ImportSource("torch")
    for name in _SETTING:
        source = AttrSource(source, name)
    install_guard(source.make_guard(GuardBuilder.EQUALS_MATCH))


def _convolves(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    values = [n.meta.get("val") for n in node.all_input_nodes]
    single = any(isinstance(v, torch.Tensor) and v.dtype == torch.float32 for v in values)
    return single and schema is not None and schema.name.startswith("aten::convolution")
