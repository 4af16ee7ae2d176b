"""Writing quantized weights into an ATen graph, in the way in which quantization tools write them.

A weight ``w`` becomes ``(codes - zeros) * scales``, of constants that the graph holds (scales of two grains: ``((codes - zeros) *
group_scales) * channel_scales``, the former product in int8, as ``zeros`` and codes are); an activation that is to be int8 becomes
``(round(x / scale) - zero) * scale``, so eager PyTorch can run the graph, and `pipeline/integers` finds its integer kernels in it. What
reads a weight as an embedding gathers codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node

from effc.compiler.compress.activations import ActivationRange
from effc.compiler.compress.form import Form
from effc.compiler.compress.quantized import QuantizedWeight, ScaleCodes
from effc.compiler.compress.rewrite import Rewriter
from effc.compiler.compress.sites import Use, WeightSite, root_of
from effc.compiler.compress.stored import StoredWeight
from effc.compiler.compress.writer import Writer

_aten = torch.ops.aten
_HALF = 127.0  # the largest code of a symmetric byte
_LEAST = 1e-12  # the smallest scale of a row, so that a row of zeros gives zeros


class QuantizedRewriter(Rewriter):
    """Writes `QuantizedWeight`."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.activations: dict[tuple[Node, object, object], Node] = {}

    def write(self, site: WeightSite, stored: StoredWeight[Form]) -> None:
        weight, range_ = stored.form, stored.range
        assert isinstance(weight, QuantizedWeight), "see Forms.rewriter"
        held = self._held(site, weight)
        if weight.scale_codes is not None:
            held["scales"] = _scales(Writer(self.gm, min(site.read.users)), weight.scale_codes, held)
        for use in site.uses:
            if use.kind == "embedding":
                self._gather(site, use, weight, held)
            else:
                self._change_activation(site, use, weight, range_, held.get("smoothing"))
        if site.read.users:
            writer = Writer(self.gm, min(site.read.users))  # nodes compare by their order in the graph
            site.read.replace_all_uses_with(self._dequantized(writer, site, weight, held))

    def _held(self, site: WeightSite, weight: QuantizedWeight) -> dict[str, Node]:
        """The constants of a site by role."""
        found = self.hold(site, weight.parts())
        self.made.known.ranges[found["codes"]] = weight.scheme.limits
        if "codebook" in found:
            self.made.known.tables[found["codebook"]] = weight.scheme.codebook
        if weight.zeros is not None:
            self.made.known.ranges[found["zeros"]] = weight.scheme.stored_limits
        return found

    def _dequantized(self, w: Writer, site: WeightSite, weight: QuantizedWeight, held: Mapping[str, Node]) -> Node:
        """The weight of the parameter's shape and dtype."""
        meta = site.read.meta["val"]
        value = self._values(w, weight, held)
        if site.out == 1:
            value = w.op(_aten.permute.default, value, [1, 0])
        elif meta.dim() > 2:
            value = w.view(value, meta.shape)
        return w.cast(value, meta.dtype)

    def _values(self, w: Writer, weight: QuantizedWeight, held: Mapping[str, Node]) -> Node:
        """``(codes - zeros) * scales`` of codes [..., sum] and scales [..., groups]."""
        codes, zeros, codebook = held["codes"], held.get("zeros"), held.get("codebook")
        scales = held["scales"] if weight.dual is None else held["group_scales"]
        *rows, width = codes.meta["val"].shape
        groups = weight.scales.shape[1]
        value = codes if codebook is None else w.op(_aten.index.Tensor, codebook, [w.cast(codes, torch.int64)])
        if groups > 1:
            value = w.view(value, [*rows, groups, width // groups])
            scales = w.op(_aten.unsqueeze.default, scales, -1)
            zeros = w.op(_aten.unsqueeze.default, zeros, -1) if zeros is not None else None
        value = w.scaled(value, zeros, scales) if weight.dual is None else w.times(value, zeros, scales)
        value = w.view(value, [*rows, width]) if groups > 1 else value
        return value if weight.dual is None else w.scaled(value, None, held["channel_scales"])

    def _gather(self, site: WeightSite, use: Use, weight: QuantizedWeight, held: Mapping[str, Node]) -> None:
        """An embedding's rows, of the codes of these rows."""
        w = Writer(self.gm, use.node)
        rows = {
            role: w.op(_aten.embedding.default, held[role], use.activation)
            for role in ("codes", "zeros", "scales", "group_scales", "channel_scales")
            if role in held
        }
        value = self._values(w, weight, {**held, **rows})
        if "smoothing" in held:
            value = w.op(_aten.mul.Tensor, value, held["smoothing"])
        use.node.replace_all_uses_with(w.cast(value, site.read.meta["val"].dtype))
        self.gm.graph.erase_node(use.node)

    # -- activations ------------------------------------------------------------------------------------------------
    def _change_activation(
        self,
        site: WeightSite,
        use: Use,
        weight: QuantizedWeight,
        range_: ActivationRange | None,
        smoothing: Node | None,
    ) -> None:
        """Divide by the smoothing and round as the scheme says, before the reshapes in front of a use, once for all uses that agree."""
        kind = weight.scheme.activations
        if smoothing is None and kind == "float":
            return
        root = root_of(use.activation, site.width) if use.kind == "linear" else use.activation
        divided = weight.smoothing.numpy().tobytes() if weight.smoothing is not None else b""
        key = (root, divided, range_ if kind == "tensor" else kind)
        if key not in self.activations:
            w = Writer(self.gm, min(root.users))
            value = w.cast(root, torch.float32)
            if smoothing is not None:
                value = w.op(_aten.mul.Tensor, value, smoothing)
            if kind == "token":
                value = _by_token(w, value)
            elif kind == "tensor":
                assert range_ is not None, "the scheme asks for a range"
                value = _by_tensor(w, value, range_)
            self.activations[key] = w.cast(value, root.meta["val"].dtype)
        changed = self._reshaped(use.activation, root, self.activations[key], use.node)
        use.node.replace_input_with(use.activation, changed)

    def _reshaped(self, node: Node, root: Node, value: Node, place: Node) -> Node:
        """``value`` through the reshapes that lead from ``root`` to ``node``."""
        if node is root:
            return value
        source, sizes = node.args[:2]
        assert isinstance(source, Node)
        return Writer(self.gm, place).op(_aten.view.default, self._reshaped(source, root, value, place), sizes)


def _scales(w: Writer, coded: ScaleCodes, held: Mapping[str, Node]) -> Node:
    """`ScaleCodes.scales` of the constants."""
    blocks, count = coded.block_scales.numel(), coded.codes.numel()
    flat = w.cast(w.view(held["scale_codes"], [count]), torch.float32)
    filled = w.op(_aten.constant_pad_nd.default, flat, [0, blocks * coded.block - count])
    spread = w.op(_aten.unsqueeze.default, held["block_scales"], 1)
    scaled = w.view(w.op(_aten.mul.Tensor, w.view(filled, [blocks, coded.block]), spread), [blocks * coded.block])
    taken = w.op(_aten.slice.Tensor, scaled, 0, 0, count)
    return w.view(w.op(_aten.add.Tensor, taken, held["mean_scale"]), coded.codes.shape)


def _by_token(w: Writer, x: Node) -> Node:
    """Int8 with a scale for each row, the largest magnitude over 127."""
    largest = w.op(_aten.amax.default, w.op(_aten.abs.default, x), [-1], True)
    scale = w.op(_aten.clamp.default, w.op(_aten.mul.Tensor, largest, 1.0 / _HALF), _LEAST)
    scaled = w.op(_aten.mul.Tensor, x, w.op(_aten.reciprocal.default, scale))
    codes = w.op(_aten.clamp.default, w.op(_aten.round.default, scaled), -_HALF, _HALF)
    return w.scaled(w.cast(codes, torch.int8), None, scale)


def _by_tensor(w: Writer, x: Node, range_: ActivationRange) -> Node:
    """Unsigned bytes with one scale and zero point."""
    scaled = w.op(_aten.round.default, w.op(_aten.mul.Tensor, x, 1.0 / range_.scale))
    codes = w.op(_aten.clamp.default, w.op(_aten.add.Tensor, scaled, range_.zero), 0, 255)
    value = w.cast(w.cast(codes, torch.uint8), torch.float32)
    return w.op(_aten.mul.Tensor, w.op(_aten.sub.Tensor, value, range_.zero), range_.scale)
