"""The errors that effc raises; every message says what is wrong, where in the user's model, and what to do."""

from __future__ import annotations


class EffcError(Exception):
    """Base of all errors that effc raises on purpose."""


class OptionError(EffcError, ValueError):
    """An unknown option, or a value that an option does not take."""


class BudgetError(EffcError):
    """No plan keeps the budgets that were asked for; the text says what is nearest."""


class UnsupportedError(EffcError):
    """A graph holds something that effc does not compile (ATen runs it, unless ``fallback="error"``)."""


class InputError(EffcError, ValueError):
    """Inputs that a calibration or a saved model does not take: their number, structure, dtype, shape or content."""


class LoweringError(EffcError):
    """A stage of the compiler failed on a graph that it had accepted; the region goes to ATen."""


class ToolchainCrash(LoweringError):
    """The process that runs MLIR died or hung; the region goes to ATen."""


class DeviceError(EffcError):
    """A GPU's driver is not there, or refuses to load or to launch a kernel."""


class CacheError(EffcError):
    """A cache directory cannot be used."""


class ArtifactError(EffcError):
    """A saved program, plan or calibration is unreadable, truncated, edited, or of another version."""


class VerificationError(EffcError):
    """``check=True`` found a kernel outside its error bound."""
