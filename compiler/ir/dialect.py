"""The ``effc`` dialect: what upstream MLIR lacks at graph level. Written in generic syntax.

==================  =========================  ==================================================================================
op                  operands                   attributes
==================  =========================  ==================================================================================
``effc.argreduce``  x                          ``kind`` "max" | "min"; ``dim`` i64, dropped: the result (i64) is the position along it of
                                               the first extremum; a NaN beats every number
``effc.scan``       x                          ``kind`` "add" | "mul" | "max" | "min" | "logaddexp"; ``dim`` i64: inclusive, along
                                               ``dim``; a second result (i64) holds the position of the extremum, of equal ones the last
``effc.scatter``    base, updates, indices…    the base, where for every point p of the updates, in row-major order, the element at c(p) is
                                               combined with updates[p]. ``coordinates`` array<i64>: c(p)[k] is p[j] for j >= 0, and for
                                               -1 - i the value that index tensor i (i64) has at ``index_maps``[i] of p; ``kind`` "assign"
                                               (the last wins) | "add" | "mul" | "max" | "min". An index out of range raises IndexError
``effc.check``      i1, in a body              ``message``: IndexError(message) is raised after the call where the operand is false
``effc.attention``  q, k, v[, mask]            ``scale`` f64; ``causal``, ``nan_rows`` bool. q: [B,H,Q,D], k: [B,G,K,D],
                                               v: [B,G,K,E], H a multiple of G; mask (added) broadcasts to
                                               [B,H,Q,K]; results [B,H,Q,E] and maybe the logsumexp [B,H,Q] (f32, f64
                                               for f64); a row that sees nothing gives 0, NaN with ``nan_rows``
==================  =========================  ==================================================================================

Example::

    %r = "effc.scatter"(%base, %u, %i) {coordinates = array<i64: -1, 1>, index_maps = [affine_map<(d0, d1) -> (d0)>], kind = "add"}
         : (tensor<5x6xf32>, tensor<3x6xf32>, tensor<3xi64>) -> tensor<5x6xf32>
"""

from __future__ import annotations

from torch_mlir import ir

#: Attributes that each op must have.
REQUIRED: dict[str, frozenset[str]] = {
    "effc.argreduce": frozenset({"kind", "dim"}),
    "effc.scan": frozenset({"kind", "dim"}),
    "effc.scatter": frozenset({"coordinates", "index_maps", "kind"}),
    "effc.check": frozenset({"message"}),
    "effc.attention": frozenset({"scale", "causal", "nan_rows"}),
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
