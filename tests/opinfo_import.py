"""Imports OpInfo samples (float32) and evaluates the graph IR against eager: what imports, what does not, what is wrong.

    python -P tests/opinfo_import.py [--limit 3] [--ops add,nn.functional.conv2d] [--dtype float32]

Traces with the same decomposition table as the backend, without Dynamo. The exit status is 1 where a value is wrong or the
import raises.
"""

from __future__ import annotations

import argparse
import collections
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from importer_harness import Capture, boxed_compiler
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

from effc.compiler.capture.decompositions import decompositions
from effc.compiler.ir.errors import EffcError


def check(function: Callable[..., Any], arguments: Any, tolerance: float) -> tuple[str, str]:
    """("whole" | "not" | "wrong" | "raised", detail) for one sample."""
    leaves, spec = pytree.tree_flatten(arguments)
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    if any(t.layout != torch.strided for t in tensors):
        return "not", "sparse tensors"

    def flat(*given: torch.Tensor) -> list[torch.Tensor]:
        rest = iter(given)
        args, kwargs = pytree.tree_unflatten([next(rest) if isinstance(x, torch.Tensor) else x for x in leaves], spec)
        return [x for x in pytree.tree_leaves(function(*args, **kwargs)) if isinstance(x, torch.Tensor)]

    with torch.no_grad():
        try:
            expected = flat(*(t.clone() for t in tensors))
        except (RuntimeError, AssertionError) as err:  # as_strided beyond a clone's storage, CUDA-only ops
            return "not", f"eager: {err}"[:100]
        capture = Capture()
        try:
            compiled = aot_function(flat, fw_compiler=boxed_compiler(capture), decompositions=decompositions())
            found = compiled(*(t.detach().clone() for t in tensors))
            if capture.refused:
                return "not", "; ".join(f"{op}: {why}" for op, why in dict.fromkeys(capture.refused))
            if not capture.regions:
                return "not", "no graph"
            for mine, right in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, right, equal_nan=True, rtol=tolerance, atol=tolerance)
        except EffcError as err:
            return "raised", f"{err}"
        except (DataDependentOutputException, DynamicOutputShapeException) as err:
            return "not", f"depends on the data: {err}"
        except AssertionError as err:
            return "wrong", str(err).replace("\n", " ")[:300]
        except Exception as err:  # a script's report: the op and the error are printed
            return "raised", f"{type(err).__name__}: {err}".replace("\n", " ")[:400]
    return "whole", ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=3)
    parser.add_argument("--ops", default="")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    wanted = set(options.ops.split(",")) - {""}
    dtype = getattr(torch, options.dtype)
    tolerance = 2e-5 if dtype.itemsize >= 4 or not dtype.is_floating_point else 4 * torch.finfo(dtype).eps
    warnings.simplefilter("ignore")
    totals: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    bad = 0
    for info in op_db:
        if (wanted and info.name not in wanted) or "empty" in info.name or dtype not in info.supported_dtypes("cpu"):
            continue
        verdicts = []
        for i, sample in enumerate(info.sample_inputs("cpu", dtype)):
            if i == options.limit:
                break
            torch.manual_seed(0)
            verdicts.append(check(info.op, ((sample.input, *sample.args), sample.kwargs), tolerance))
        kinds = {v[0] for v in verdicts}
        name = f"{info.name}.{info.variant_test_name}" if info.variant_test_name else info.name
        if kinds & {"wrong", "raised"}:
            status = "wrong"
            bad += 1
            print(name, *(v for v in verdicts if v[0] in ("wrong", "raised")), flush=True)
        else:
            status = "wholly" if kinds == {"whole"} else "partly" if "whole" in kinds else "not"
        totals[status] += 1
        for verdict, detail in verdicts:
            if verdict in ("not", "untraceable"):
                reasons[detail.split(":")[0] if verdict == "untraceable" else detail] += 1
    print(dict(totals))
    for reason, count in reasons.most_common(80):
        print(count, reason[:200])
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
