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

Sums and softmax are in f32 (f64 for f64), whatever is stored; of bf16 `amx` rounds the probabilities before their product
with v. The schedule has no parameters: `amx`, `blocks` and `rows` fix their blocks from sizes.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.attention.amx.kernel import emit_amx, takes_tiles
from effc.compiler.codegen.cpu.attention.blocks import emit_blocks
from effc.compiler.codegen.cpu.attention.form import Attention, supports
from effc.compiler.codegen.cpu.attention.rows import emit_rows, takes_rows
from effc.compiler.codegen.cpu.target import Target
from effc.compiler.codegen.cpu.text import Builder
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.spec import KernelSpec


def emit(spec: KernelSpec, target: Target) -> str:
    """The kernel's module; LoweringError where `supports` says no."""
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
