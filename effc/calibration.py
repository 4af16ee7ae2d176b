"""``effc.calibrate``: run a model in eager on some batches and keep what planning needs to know."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map

from effc.compiler.ir import calibration as ir
from effc.compiler.ir.calibration import Statistics
from effc.compiler.ir.errors import ArtifactError, InputError
from effc.identity import model_digest, original
from effc.observe import Observer
from effc.runtime import archive
from effc.runtime.structure import flatten, unflatten

KIND = "calibration 1"
_ARRAYS = ("absmax", "mean_square", "sample", "weight_absmax", "weight_mean_square")


class Calibration(ir.Calibration):
    """See ``effc.compiler.ir.calibration``; this one can be kept in a file."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, the batches included, replacing a file in one step."""
        archive.write(path, KIND, *_encode(self.model, self.sites, self.batches, self.outputs))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Calibration:
        """What ``save`` wrote. ArtifactError: unreadable, truncated, edited, or of another version."""
        found = archive.read(path, KIND)
        try:
            return _decode(found)
        except (KeyError, TypeError, ValueError, IndexError) as err:
            raise ArtifactError(f"{path} does not hold what a calibration holds ({err!r})") from err


def calibrate(model: nn.Module, batches: Iterable[Any], *, max_batches: int = 16, rows: int = 128) -> Calibration:
    """Run ``model`` in eager, without gradients, on up to ``max_batches`` of ``batches``.

    A batch is a tensor, a tuple or list of positional arguments, or a dict of named ones. ``rows``: how many rows of the
    activations are kept for each weight. The batches and the outputs are kept too: plans are verified on them.
    InputError: a model in training mode; no batches; a batch that is empty, holds NaN, or that the model does not take.
    """
    module = original(model)
    if not isinstance(module, nn.Module):
        raise InputError(f"calibrate takes a module, not {type(module).__name__}: wrap the function in one")
    if module.training:
        raise InputError(
            "the model is in training mode, in which dropout and batch statistics vary: call model.eval() first"
        )
    observer = Observer(_names(module), rows)
    calls, outputs = [], []
    for number, batch in enumerate(itertools.islice(batches, max_batches)):
        call = _call_of(batch)
        _check(f"batch {number}", call, inputs=True)
        output = _run(module, number, call, observer)
        _check(f"the model's output for batch {number}", output, inputs=False)
        calls.append(call)
        outputs.append(output)
    if not calls:
        raise InputError("there are no batches to calibrate with: give at least one, better 8 to 16")
    return _made(model_digest(module), observer.statistics(), tuple(calls), tuple(outputs))


def cloned(value: Any) -> Any:
    """The same with tensors of its own."""
    return tree_map(lambda v: v.detach().clone() if isinstance(v, torch.Tensor) else v, value)


def _run(module: nn.Module, number: int, call: tuple[tuple[Any, ...], Mapping[str, Any]], observer: Observer) -> Any:
    args, kwargs = cloned(call)  # the model may write into its inputs
    try:
        with torch.no_grad(), observer:
            return cloned(module(*args, **kwargs))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = [list(t.shape) for t in flatten(call)[1]]
        raise InputError(f"the model does not take batch {number} (tensors of shapes {shapes}): {error}") from error


def _call_of(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(batch, torch.Tensor):
        return (batch.detach().clone(),), {}
    if isinstance(batch, Mapping):
        return (), cloned(dict(batch))
    if isinstance(batch, tuple | list):
        return tuple(cloned(list(batch))), {}
    raise InputError(
        f"a batch is {type(batch).__name__}: expected a tensor, a tuple or list of arguments, or a dict of them"
    )


def _check(what: str, value: Any, inputs: bool) -> None:
    tensors = flatten(value)[1]
    if inputs and not tensors:
        raise InputError(f"{what} holds no tensor")
    for tensor in tensors:
        if inputs and tensor.numel() == 0:
            raise InputError(f"{what} holds a tensor without elements, of shape {list(tensor.shape)}")
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise InputError(f"{what} holds NaN: nothing can be compared with it")


def _names(module: nn.Module) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


# -- content --------------------------------------------------------------------------------------------------------
def _made(
    model: str,
    sites: Mapping[str, Statistics],
    batches: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...],
    outputs: tuple[Any, ...],
) -> Calibration:
    return Calibration(model, sites, batches, outputs, archive.digest(KIND, *_encode(model, sites, batches, outputs)))


def _encode(
    model: str,
    sites: Mapping[str, Statistics],
    batches: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...],
    outputs: tuple[Any, ...],
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    tree, tensors = flatten(
        [[list(args), dict(kwargs), out] for (args, kwargs), out in zip(batches, outputs, strict=True)]
    )
    arrays = [torch.from_numpy(np.ascontiguousarray(getattr(s, name))) for s in sites.values() for name in _ARRAYS]
    values = {"model": model, "calls": tree, "sites": [[name, s.rows] for name, s in sites.items()]}
    return values, [*arrays, *tensors]


def _decode(found: archive.Archive) -> Calibration:
    values, count = found.values, len(_ARRAYS)
    sites = {}
    for number, (name, rows) in enumerate(values["sites"]):
        arrays = [t.numpy() for t in found.tensors[count * number : count * (number + 1)]]
        sites[name] = Statistics(**dict(zip(_ARRAYS, arrays, strict=True)), rows=rows)
    calls = unflatten(values["calls"], found.tensors[count * len(sites) :])
    batches = tuple((tuple(args), kwargs) for args, kwargs, _ in calls)
    return Calibration(values["model"], sites, batches, tuple(out for _, _, out in calls), found.digest)
