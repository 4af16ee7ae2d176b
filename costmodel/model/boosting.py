"""Growing boosted trees by LightGBM: the same for the same records, parameters and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effc.compiler.ir.errors import OptionError

#: Records below which trees only learn noise.
FEWEST = 50
_ALWAYS: Mapping[str, Any] = {"deterministic": True, "force_row_wise": True, "verbosity": -1}


def grown(
    rows: NDArray[np.float32],
    learned: NDArray[np.float64],
    columns: Sequence[str],
    parameters: Mapping[str, Any],
    rounds: int,
    seed: int,
    workers: int,
    base: str | None = None,
) -> str:
    """LightGBM's text of ``rounds`` trees, on top of those of the text ``base``. ``learned``: a number of each row of features, NaN where
    there is none to learn from; ``columns``: their names. OptionError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ImportError:
        raise OptionError("training a cost model needs LightGBM: pip install 'effc[costmodel]'") from None
    known = ~np.isnan(learned)
    table = lightgbm.Dataset(rows[known], learned[known], feature_name=list(columns), free_raw_data=False)
    below = None if base is None else lightgbm.Booster(model_str=base)
    chosen = {**_ALWAYS, **parameters, "seed": seed, "num_threads": workers}
    found: str = lightgbm.train(chosen, table, num_boost_round=rounds, init_model=below).model_to_string()
    return found
