"""Writing factors into an ATen graph: a product with each."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from effc.compiler.compress.form import Form
from effc.compiler.compress.low_rank.factors import Factors
from effc.compiler.compress.rewrite import Rewriter
from effc.compiler.compress.sites import Use, WeightSite
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.compress.writer import Writer

_aten = torch.ops.aten
_TURNED = [1, 0]


class FactorRewriter(Rewriter):
    """Writes `Factors`: ``x Wᵀ`` becomes ``(x rightᵀ) leftᵀ``, rows of a table those of ``left`` times ``right``."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.rights: dict[int, Node] = {}
        self.inner: dict[tuple[Node, Node], Node] = {}

    def write(self, site: WeightSite, stored: StoredWeight[Form]) -> None:
        factors = stored.form
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
        if (x, right) not in self.inner:
            # before all that read the activation: weights that share the factor read this too
            first = Writer(self.gm, min(x.users))
            self.inner[x, right] = first.op(_aten.mm.default, x, first.op(_aten.permute.default, right, _TURNED))
        use.node.update_arg(use.place, self.inner[x, right])
        use.node.update_arg(use.place + 1, writer.op(_aten.permute.default, left, _TURNED))
        if shift is not None:
            following = Writer(self.gm, use.node.next)
            moved = following.op(_aten.add.Tensor, use.node, shift)
            use.node.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)

    def _gather(self, use: Use, left: Node, right: Node) -> None:
        writer = Writer(self.gm, use.node)
        rank, width = right.meta["val"].shape
        rows = writer.op(_aten.embedding.default, left, use.activation)
        flat = writer.op(_aten.mm.default, writer.view(rows, [-1, rank]), right)
        use.node.replace_all_uses_with(writer.view(flat, [*writer.sizes(use.activation), width]))
        self.gm.graph.erase_node(use.node)
