"""Writing factors into an ATen graph: a product with each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from effc.compiler.compress.form import Form
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.low_rank.filters import FilterChain, placed
from effc.compiler.compress.rewrite import Rewriter
from effc.compiler.compress.sites import Use, WeightSite
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.compress.writer import Writer

_aten = torch.ops.aten
_TURNED = [1, 0]


class FactorRewriter(Rewriter):
    """Writes `Factors`: ``x Wᵀ`` becomes ``(x rightᵀ) leftᵀ``, rows of a table those of ``left`` times ``right``; and `FilterChain`:
    convolutions one behind another.
    """

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.rights: dict[int, Node] = {}
        self.inner: dict[tuple[Node, Node], Node] = {}

    def write(self, site: WeightSite, stored: StoredWeight[Form]) -> None:
        factors = stored.form
        if isinstance(factors, FilterChain):
            self._write_chain(site, factors)
            return
        assert isinstance(factors, Factors), "see Forms.rewriter"
        parts = dict(factors.parts())
        shared = self.rights.get(id(factors.right))
        if shared is not None:
            del parts["right"]
        held = self.hold(site, parts)
        right = self.rights.setdefault(id(factors.right), held["right"] if shared is None else shared)
        for use in site.uses:
            if use.kind == "embedding":
                self._gather(use, held["left"], right)
            else:
                self._multiply(use, held["left"], right, held.get("shift"))

    def _multiply(self, use: Use, left: Node, right: Node, shift: Node | None) -> None:
        writer, x = Writer(self.gm, use.node), use.activation
        dtype = x.meta["val"].dtype  # under autocast not that of the parameter
        if (x, right) not in self.inner:
            # before all that read the activation: weights that share the factor read this too
            first = Writer(self.gm, min(x.users))
            turned = first.op(_aten.permute.default, first.cast(right, dtype), _TURNED)
            self.inner[x, right] = first.op(_aten.mm.default, x, turned)
        use.node.update_arg(use.place, self.inner[x, right])
        use.node.update_arg(use.place + 1, writer.op(_aten.permute.default, writer.cast(left, dtype), _TURNED))
        if shift is not None:
            following = Writer(self.gm, use.node.next)
            moved = following.op(_aten.add.Tensor, use.node, following.cast(shift, dtype))
            use.node.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)

    def _gather(self, use: Use, left: Node, right: Node) -> None:
        writer = Writer(self.gm, use.node)
        rank, width = right.meta["val"].shape
        rows = writer.op(_aten.embedding.default, left, use.activation)
        flat = writer.op(_aten.mm.default, writer.view(rows, [-1, rank]), right)
        use.node.replace_all_uses_with(writer.view(flat, [*writer.sizes(use.activation), width]))
        self.gm.graph.erase_node(use.node)

    def _write_chain(self, site: WeightSite, chain: FilterChain) -> None:
        held = self.hold(site, chain.parts())
        kernels = [held[f"kernel{n}"] for n in range(len(chain.kernels))]
        for use in site.uses:
            self._convolve(use, chain, kernels, held.get("shift"))

    def _convolve(self, use: Use, chain: FilterChain, kernels: list[Node], shift: Node | None) -> None:
        """The last kernel takes the node's place; in it the bias adds what the output is to be shifted by."""
        w, node, value = Writer(self.gm, use.node), use.node, use.activation
        _, _, bias, stride, padding, dilation, *rest = node.args
        dtype, windows = value.meta["val"].dtype, [kernel.shape[2:] for kernel in chain.kernels]
        moves = [
            _placed(windows, values, elsewhere) for values, elsewhere in ((stride, 1), (padding, 0), (dilation, 1))
        ]
        *before, (last, *moved) = zip(kernels, *moves, strict=True)
        for kernel, *of_kernel in before:
            value = w.op(_aten.convolution.default, value, w.cast(kernel, dtype), None, *of_kernel, *rest)
        if shift is not None:
            shift = w.cast(shift, dtype)
            bias = shift if bias is None else w.op(_aten.add.Tensor, bias, shift)
        node.args = (value, w.cast(last, dtype), bias, *moved, *rest)


def _placed(windows: Sequence[Sequence[int]], values: Any, elsewhere: int) -> list[list[int]]:
    """ATen takes one value for all dimensions too."""
    dims = len(windows[0])
    return placed(windows, values * dims if len(values) == 1 else values, elsewhere)
