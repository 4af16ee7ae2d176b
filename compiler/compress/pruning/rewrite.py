"""Writing pruned weights into an ATen graph: constants that have zeros, and what kernels may know of these."""

from __future__ import annotations

import torch

from effc.compiler.compress.form import Form
from effc.compiler.compress.pruning.pruned import PrunedWeight
from effc.compiler.compress.rewrite import Rewriter
from effc.compiler.compress.sites import WeightSite
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.compress.writer import Writer

_aten = torch.ops.aten


class PrunedRewriter(Rewriter):
    """Writes `PrunedWeight`: ``w`` becomes a constant of its shape, which lies ``[out, window…, channels]`` in memory. A permutation
    behind it gives the parameter's order, where that is another.
    """

    def write(self, site: WeightSite, stored: StoredWeight[Form]) -> None:
        form = stored.form
        assert isinstance(form, PrunedWeight), "see Forms.rewriter"
        value = self.hold(site, form.parts())["pruned"]
        self.made.known.sparsities[value] = form.sparsity
        writer, last = Writer(self.gm, min(site.read.users)), value.meta["val"].dim() - 1
        if site.out == 1 or not form.pointwise:
            value = writer.op(_aten.permute.default, value, [1, 0] if site.out == 1 else [0, last, *range(1, last)])
        site.read.replace_all_uses_with(value)
