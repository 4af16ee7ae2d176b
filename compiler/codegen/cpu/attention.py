"""The ``attention`` template: ``softmax(scale * q k^T + mask) v`` with an online softmax, so that scores never leave the cache.

Layout of the spec
------------------
``dims``, in this order and all present: ``d0`` batch, ``d1`` heads, ``d2`` queries, ``d3`` keys, ``d4`` channels of q and k, ``d5``
channels of v and the result. The kinds are ``parallel`` except for ``d3`` and ``d4`` (``reduction``). ``d4`` and ``d5`` are known
numbers; the others may be symbols. ``body`` is empty.

``operands``, in this order: q, k, v, the result, then the mask and the logsumexp where there are such. ``attributes`` (by name):

==========  ====================================================================================================================
``causal``  1: query *i* sees the keys *j* <= *i* (the corner is top left, as in torch); 0: all
``group``   optional: how many heads, next to each other, share one head of k and v (1)
``k``       address of k over ``d0 d1 d3 d4``; grouped queries divide: ``(d1 // 4) * 8192``
``lse``     optional: address over ``d0 d1 d2`` of the natural logarithm of the sum of exponentials (f32; f64 for f64)
``mask``    optional: address over ``d0 d1 d2 d3``; i1: true takes part; a float is added to the scaled score
``nan``     optional; 1: a query that sees nothing gives NaN; 0: it gives 0, and 0 as its logsumexp, as torch's kernel does
``out``     address over ``d0 d1 d2 d5``
``q``       address over ``d0 d1 d2 d4``
``scale``   float
``v``       address over ``d0 d1 d3 d5``
==========  ====================================================================================================================

Sums and softmax are in f32 (f64 for f64), whatever is stored; of bf16 `attention_amx` rounds the probabilities before their product
with v. The schedule has no parameters: `attention_amx`, `attention_blocks` and `attention_rows` fix their blocks from sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import Expr
from effc.compiler.ir.spec import ITEM_SIZE, KernelSpec

#: Bytes of stack for q, scores and results of a block; the convention allows 64 KiB for all that a kernel keeps there.
STACK_BYTES = 60 * 1024
#: Keys of a block: its scores (32 queries x 128 keys, 16 KiB) stay in L1 beside q and the results.
KEYS = 128


@dataclass(frozen=True)
class Attention:
    """A spec read: ``accumulator`` is the type of scores and sums."""

    spec: KernelSpec
    accumulator: str

    @property
    def causal(self) -> bool:
        return bool(self.spec.get("causal"))

    @property
    def scale(self) -> float:
        return float(self.spec.get("scale"))

    @property
    def group(self) -> int:
        """Heads that share one head of k and v."""
        return int(self.spec.get("group", 1))

    @property
    def nan_rows(self) -> bool:
        return bool(self.spec.get("nan", 0))

    @property
    def channels(self) -> tuple[int, int]:
        """Of q and k, and of v and the result."""
        d, e = self.spec.dims[4].size.constant, self.spec.dims[5].size.constant
        assert d is not None, "supports() admits only known channels"
        assert e is not None, "supports() admits only known channels"
        return d, e

    def has(self, name: str) -> bool:
        return self.spec.get(name) is not None

    def operand(self, name: str) -> int:
        order = ["q", "k", "v", "out", *(n for n in ("mask", "lse") if self.has(n))]
        return order.index(name)

    def dtype(self, name: str) -> str:
        return self.spec.operands[self.operand(name)].dtype

    def address(self, name: str) -> Expr:
        address = self.spec.get(name)
        assert isinstance(address, Expr), f"attention needs the address of {name}"
        return address


def supports(spec: KernelSpec, target: Target) -> str | None:
    """None where `emit` makes a kernel of ``spec``, else the reason why it does not."""
    if len(spec.dims) != 6:
        return f"attention has six dimensions, this one {len(spec.dims)}"
    if spec.dims[4].size.constant is None or spec.dims[5].size.constant is None:
        return "the number of channels is not known"
    accumulator = "f64" if spec.operands[0].dtype == "f64" else "f32"
    if any(o.dtype not in ("f64", "f32", "bf16", "f16") for o in spec.operands[:4]):
        return "attention is computed on floats"
    size = ITEM_SIZE[accumulator]
    lanes = target.lanes(size)
    channels = spec.dims[4].size.constant + spec.dims[5].size.constant
    if (channels + KEYS + 16) * lanes * size > STACK_BYTES:
        return f"{channels} channels of q and v do not fit the cache"
    for name in ("q", "k", "v", "out"):
        for dim in ("d2", "d3", "d4", "d5"):
            factor = spec.get(name).coefficient(dim)
            if factor is None or any(v[0] == "d" for v in factor.variables()):
                return f"the address of {name} is not linear in {dim}"
    return None


def emit(spec: KernelSpec, target: Target) -> str:
    """The kernel's module; LoweringError where `supports` says no."""
    from effc.compiler.codegen.cpu.attention_amx import emit_amx, takes_tiles
    from effc.compiler.codegen.cpu.attention_blocks import emit_blocks
    from effc.compiler.codegen.cpu.attention_rows import emit_rows, takes_rows

    reason = supports(spec, target)
    if reason is not None:
        raise LoweringError(f"this attention is not supported: {reason}")
    attention = Attention(spec, "f64" if spec.operands[0].dtype == "f64" else "f32")
    b = Builder()
    if takes_rows(attention, target):
        emit_rows(b, attention, target)
    elif takes_tiles(attention, target):
        emit_amx(b, attention, target)
    else:
        emit_blocks(b, attention, target)
    return b.text()
