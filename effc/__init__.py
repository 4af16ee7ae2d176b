"""effc makes a trained PyTorch model cheap to run: ``torch.compile(model, backend="effc")``.

Nothing is imported before it is used: ``import effc`` alone loads neither torch nor MLIR.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effc.calibration import Calibration, calibrate
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
    from effc.efficiency import EfficiencyGap, efficiency_gap
    from effc.explainer import explain
    from effc.loading import Loaded, load
    from effc.planning import plan
    from effc.plans import Plan
    from effc.refresher import refresh
    from effc.report import Report
    from effc.saving import save
    from effc.waterline import Level, Roof, Waterline

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
    "Calibration": "effc.calibration",
    "EfficiencyGap": "effc.efficiency",
    "Level": "effc.waterline",
    "Loaded": "effc.loading",
    "Options": "effc.compiler.ir.options",
    "Plan": "effc.plans",
    "Report": "effc.report",
    "Roof": "effc.waterline",
    "Waterline": "effc.waterline",
    "calibrate": "effc.calibration",
    "efficiency_gap": "effc.efficiency",
    "explain": "effc.explainer",
    "load": "effc.loading",
    "plan": "effc.planning",
    "refresh": "effc.refresher",
    "save": "effc.saving",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'effc' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE.get(name, "effc.compiler.ir.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
