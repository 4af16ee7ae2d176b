"""The ``loops`` template: pointwise kernels and reductions over any dimensions, with any body.

``canonical`` drops and merges dimensions, ``plan`` decides how to vectorise, ``nest`` writes the parallel loops,
``passes`` the passes over the reduction dimensions, ``reducers`` the accumulators.
"""

from __future__ import annotations

from effc.compiler.codegen.cpu.loops.nest import emit

__all__ = ["emit"]
