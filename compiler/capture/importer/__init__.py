"""The importer: FX nodes in ATen -> graph IR as MLIR text. ``supported`` asks about one node, ``import_region`` writes a region."""

from effc.compiler.capture.importer import (  # noqa: F401  (each registers its family)
    attention,
    contractions,
    convolution,
    creation,
    division,
    functions,
    indexing,
    integer_products,
    logic,
    padding,
    pointwise,
    pooling,
    reductions,
    scatter,
    strided,
    views,
)
from effc.compiler.capture.importer.region import Region, SymbolSource, import_region, supported

__all__ = ["Region", "SymbolSource", "import_region", "supported"]
