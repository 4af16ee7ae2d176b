"""effc makes a trained PyTorch model cheap to run: ``torch.compile(model, backend="effc")``.

Nothing is imported before it is used: ``import effc`` alone loads neither torch nor MLIR.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effc.calibrating.calibration import Calibration, calibrate
    from effc.compiler.ir.errors import (
        ArtifactError,
        BudgetError,
        CacheError,
        EffcError,
        InputError,
        LoweringError,
        OptionError,
        ToolchainCrash,
        UnsupportedError,
        VerificationError,
    )
    from effc.compiler.ir.options import Options
    from effc.planning.plans import Plan
    from effc.planning.search import plan
    from effc.refresher import refresh
    from effc.reporting.bounds import Level, Roof
    from effc.reporting.efficiency import EfficiencyGap, efficiency_gap
    from effc.reporting.explainer import explain
    from effc.reporting.report import Report
    from effc.reporting.waterline import Waterline
    from effc.shipping.loading import Loaded, load
    from effc.shipping.saving import save

__all__ = [
    "ArtifactError",
    "BudgetError",
    "CacheError",
    "Calibration",
    "EffcError",
    "EfficiencyGap",
    "InputError",
    "Level",
    "Loaded",
    "LoweringError",
    "OptionError",
    "Options",
    "Plan",
    "Report",
    "Roof",
    "ToolchainCrash",
    "UnsupportedError",
    "VerificationError",
    "Waterline",
    "calibrate",
    "efficiency_gap",
    "explain",
    "load",
    "plan",
    "refresh",
    "save",
]

_WHERE = {
    "Calibration": "effc.calibrating.calibration",
    "EfficiencyGap": "effc.reporting.efficiency",
    "Level": "effc.reporting.bounds",
    "Loaded": "effc.shipping.loading",
    "Options": "effc.compiler.ir.options",
    "Plan": "effc.planning.plans",
    "Report": "effc.reporting.report",
    "Roof": "effc.reporting.bounds",
    "Waterline": "effc.reporting.waterline",
    "calibrate": "effc.calibrating.calibration",
    "efficiency_gap": "effc.reporting.efficiency",
    "explain": "effc.reporting.explainer",
    "load": "effc.shipping.loading",
    "plan": "effc.planning.search",
    "refresh": "effc.refresher",
    "save": "effc.shipping.saving",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'effc' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE.get(name, "effc.compiler.ir.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
