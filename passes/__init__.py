"""The rewrites: one pass, one file. ``registry()`` imports them all and names them."""

from __future__ import annotations

import importlib
import pkgutil

from effc.compiler.ir.passes import Pass, registered


def registry() -> dict[str, type[Pass]]:
    """Every registered pass by name: those of this package, and those of modules imported before."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return registered()
