"""Writing thresholds into an ATen graph: zeros where a magnitude does not exceed one."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from effc.compiler.compress.form import Form
from effc.compiler.compress.rewrite import Rewriter
from effc.compiler.compress.sites import WeightSite, root_of
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.compress.thresholds.form import Thresholded
from effc.compiler.compress.writer import Writer

_aten = torch.ops.aten


class ThresholdRewriter(Rewriter):
    """Writes `Thresholded`: ``W x`` becomes ``W where(|x| <= t, 0, x)``, and ``down(a * u)`` of an MLP ``down(where(|a| <= t, 0, a * u))``:
    zero whatever ``u`` is, so that a kernel need not know it. NaN exceeds every threshold.
    """

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.sparse: dict[Node, Node] = {}

    def write(self, site: WeightSite, stored: StoredWeight[Form]) -> None:
        form = stored.form
        assert isinstance(form, Thresholded), "see Forms.rewriter"
        if form.threshold is None:
            return
        (use,) = site.uses
        source = root_of(use.activation, site.width)
        if source not in self.sparse:
            threshold = self.hold(site, form.parts())["threshold"]
            self.made.known.shares[threshold] = form.share
            first = Writer(self.gm, min(source.users))
            magnitude = first.op(_aten.abs.default, source if form.mlp is None else form.mlp.activated)
            small = first.op(_aten.le.Tensor, magnitude, threshold)
            self.sparse[source] = first.op(_aten.masked_fill.Scalar, source, small, 0.0)
        use.node.update_arg(use.place, self._reshaped(use.activation, source, use.node))

    def _reshaped(self, activation: Node, source: Node, place: Node) -> Node:
        """``activation``, a reshape of ``source``, of the sparse one."""
        if activation is source:
            return self.sparse[source]
        inner = activation.args[0]
        assert isinstance(inner, Node), "see root_of"
        return Writer(self.gm, place).op(activation.target, self._reshaped(inner, source, place), *activation.args[1:])
