"""The ``effc`` dialect: what upstream MLIR lacks at graph level. Written in generic syntax, destinations last, one for each result.

==================  ===========================================  ================================================================
op                  operands                                     attributes
==================  ===========================================  ================================================================
``effc.argreduce``  x, destination (i64)                         ``kind`` "argmax" | "argmin"; ``dims`` array<i64>, reduced in row-major
                                                                 order and dropped: the result is the position within them
``effc.scan``       x, destination[, destination of indices]     ``kind`` "add" | "mul" | "max" | "min" | "logaddexp"; ``dim`` i64: inclusive,
                                                                 along ``dim``; a second result (i64) holds the position of the extremum
``effc.scatter``    updates, indices…, destination               ``maps``: of updates, of each index tensor, and of the destination, whose
                                                                 symbol ``s<j>`` is the value of index tensor j (negative ones already wrapped),
                                                                 all over the dims of the updates; ``combine`` "set" | "add" | "mul" | "max" | "min";
                                                                 ``independent`` i64: that many leading dims address disjoint elements. Updates
                                                                 apply in row-major order; an index out of range raises IndexError
``effc.check``      indices (any integer type)                   ``low``, ``high``: text of ``Expr``; ``message``: raises IndexError(message)
                                                                 unless low <= every index < high. Reads guarded by it clamp their index.
``effc.attention``  q, k, v[, mask], destination[, logsumexp]    ``scale`` f64; ``causal`` bool; ``masked`` bool (a mask operand, additive
                                                                 float or bool = keep, broadcast to [B,H,Q,K]). q: [B,H,Q,D], k: [B,G,K,D],
                                                                 v: [B,G,K,E], H a multiple of G; destination [B,H,Q,E]; logsumexp f32 [B,H,Q]
==================  ===========================================  ================================================================

Example::

    %r = "effc.scatter"(%u, %i, %dest) {maps = [affine_map<(d0, d1)[s0] -> (d0, d1)>, affine_map<(d0, d1)[s0] -> (d0)>,
         affine_map<(d0, d1)[s0] -> (s0, d1)>], combine = "add", independent = 0 : i64}
         : (tensor<3x6xf32>, tensor<3xi64>, tensor<5x6xf32>) -> tensor<5x6xf32>
"""

from __future__ import annotations

from torch_mlir import ir

#: Attributes that each op must have.
REQUIRED: dict[str, frozenset[str]] = {
    "effc.argreduce": frozenset({"kind", "dims"}),
    "effc.scan": frozenset({"kind", "dim"}),
    "effc.scatter": frozenset({"maps", "combine", "independent"}),
    "effc.check": frozenset({"low", "high", "message"}),
    "effc.attention": frozenset({"scale", "causal", "masked"}),
}


def new_context() -> ir.Context:
    """A context in which graph IR parses. The dialect is unregistered there (its ops keep any attribute); ``verify`` checks them."""
    context = ir.Context()
    context.allow_unregistered_dialects = True
    return context


def verify(module: ir.Module) -> list[str]:
    """What is wrong with the ``effc`` ops of a module, one line each."""
    problems: list[str] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name.startswith("effc."):
            if op.name not in REQUIRED:
                problems.append(f"{op.name} at {op.location}: the effc dialect has no such op")
            else:
                missing = sorted(REQUIRED[op.name] - {str(name) for name in op.attributes})
                problems.extend(f"{op.name} at {op.location}: attribute '{name}' is missing" for name in missing)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return problems
