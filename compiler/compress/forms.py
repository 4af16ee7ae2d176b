"""What options say of compression."""

from __future__ import annotations

from effc.compiler.compress.by_options import ByOptions
from effc.compiler.compress.by_plan import ByPlan
from effc.compiler.compress.compressor import Forms
from effc.compiler.ir.errors import OptionError
from effc.compiler.ir.options import Options
from effc.passes.quantize import Quantize


def forms_of(options: Options) -> Forms | None:
    """Where compressed weights come from; None where the model stays exact. OptionError: a rewrite that has none here."""
    asked = options.compressions()
    if options.plan is not None:
        if asked:
            raise OptionError(
                "options 'plan' and 'passes' exclude each other where both compress: a plan has its passes in it"
            )
        return ByPlan(options.plan.weights) if options.plan.weights else None
    if not asked:
        return None
    (chosen,) = asked
    if not isinstance(chosen, Quantize):
        raise OptionError(f"this version of effc cannot compress by '{chosen.name}'")
    return ByOptions(chosen)
