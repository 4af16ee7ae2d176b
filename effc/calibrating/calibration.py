"""``effc.calibrate``: run a model in eager on some batches and keep what planning needs to know."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map

from effc.calibrating.held_out import checked_share, count_held_out
from effc.calibrating.identity import model_digest, original, trains
from effc.calibrating.observe import Observer
from effc.calibrating.sensitivity import GradientObserver, Probe
from effc.compiler.ir import calibration as ir
from effc.compiler.ir.calibration import Statistics
from effc.compiler.ir.errors import ArtifactError, InputError, OptionError
from effc.runtime import archive
from effc.runtime.structure import flatten, unflatten

KIND = "calibration 7"
_ARRAYS = (
    "least",
    "greatest",
    "mean",
    "mean_square",
    "sample",
    "second_moment",
    "weight_absmax",
    "weight_mean_square",
    "sensitivity",
    "windows",
    "effects",
)


class Calibration(ir.Calibration):
    """See ``effc.compiler.ir.calibration``; this one can be kept in a file."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, the batches included, replacing a file in one step."""
        archive.write(path, KIND, *_encode(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Calibration:
        """What ``save`` wrote. ArtifactError: unreadable, truncated, edited, or of another version."""
        found = archive.read(path, KIND)
        try:
            return _decode(found)
        except (KeyError, TypeError, ValueError, IndexError) as err:
            raise ArtifactError(f"{path} does not hold what a calibration holds ({err!r})") from err


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_batches: int = 16,
    rows: int = 128,
    second_moments: bool = True,
    sensitivity: Probe | None = None,
    held_out: float = 0.25,
) -> Calibration:
    """Run ``model`` in eager on up to ``max_batches`` of ``batches``, and keep what compression and planning need to know.

    A batch is a tensor, a tuple or list of positional arguments, or a dict of named ones. The batches and the outputs are kept too.

    ``rows``: how many rows of the activations are kept for each weight and, of a convolution, how many windows.

    ``second_moments``: keep the mean of ``x xᵀ`` over all rows, ``[channels, channels]`` in float32, for each activation that meets a
    weight, once where several weights meet it. GPTQ needs as many rows as channels and more, and AWQ is the better for them. Of the 135
    million parameters of SmolLM2 these matrices take 400 MB, as much as 1,030 rows of each activation would. False saves them: the kept
    rows then stand for all.

    ``sensitivity``: run each batch backwards too, and keep how much of an error of each layer the model's output shows. The output is its
    first tensor of floats, taken as ``"logits"`` of classes along the last dimension, or as ``"values"``. Ranks are shared out by it, and
    channels are removed.

    ``held_out``: the share of the batches, the last ones, by which nothing is compressed and a plan's error is measured: what is
    compressed to fit a few batches fits others less. At least one where there are two, and of 8 two. 0: none, where no plan is made, or
    its error is measured elsewhere.

    OptionError: a wrong option. InputError: a model in training mode; no batches; a batch that is empty, holds NaN, or that the model does
    not take; outputs without gradients, where sensitivity is asked for.
    """
    module = original(model)
    if not isinstance(module, nn.Module):
        raise InputError(f"calibrate takes a module, not {type(module).__name__}: wrap the function in one")
    if trains(module):
        raise InputError(
            "the model is in training mode, in which dropout and batch statistics vary: call model.eval() first"
        )
    if sensitivity not in (None, *get_args(Probe)):
        raise OptionError(f"'sensitivity' is {sensitivity!r}: expected None, or one of {', '.join(get_args(Probe))}")
    share = checked_share(held_out)
    calls = [call_of(batch) for batch in itertools.islice(batches, max_batches)]
    if not calls:
        raise InputError("there are no batches to calibrate with: give at least one, better 8 to 16")
    names, seen = _names(module), len(calls) - count_held_out(len(calls), share)
    observer, judge = Observer(names, rows, second_moments), Observer(names, rows, second_moments=False)
    gradients = None if sensitivity is None else GradientObserver(names, sensitivity)
    outputs = []
    for number, call in enumerate(calls):
        _check(f"batch {number}", call, inputs=True)
        watching = observer if number < seen else judge
        output = _run(module, number, call, watching)
        _check(f"the model's output for batch {number}", output, inputs=False, watching=watching)
        if gradients is not None and number < seen:
            with torch.inference_mode(False):
                args, kwargs = cloned(call)
                gradients.see(module, args, kwargs)
        outputs.append(output)
    sites = observer.statistics()
    if gradients is not None:
        sites = gradients.added_to(sites)
    batches_held_out = len(calls) - seen
    found = Calibration(
        model_digest(module), sites, tuple(calls), tuple(outputs), "", batches_held_out, judge.statistics()
    )
    return replace(found, digest=archive.digest(KIND, *_encode(found)))


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


def call_of(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Copies of the positional and named arguments of a call with ``batch``. InputError: it is nothing that a call can be made of."""
    if isinstance(batch, torch.Tensor):
        return (batch.detach().clone(),), {}
    if isinstance(batch, Mapping):
        return (), cloned(dict(batch))
    if isinstance(batch, tuple | list):
        return tuple(cloned(list(batch))), {}
    raise InputError(
        f"a batch is {type(batch).__name__}: expected a tensor, a tuple or list of arguments, or a dict of them"
    )


def _check(what: str, value: Any, inputs: bool, watching: Observer | None = None) -> None:
    """``watching``: has seen the call that gave ``value``."""
    tensors = flatten(value)[1]
    if inputs and not tensors:
        raise InputError(f"{what} holds no tensor")
    for tensor in tensors:
        if inputs and tensor.numel() == 0:
            raise InputError(f"{what} holds a tensor without elements, of shape {list(tensor.shape)}")
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            layer = None if watching is None else watching.first_with_nan()
            first = f"; {layer} is the first weight that meets NaN" if layer else ""
            raise InputError(f"{what} holds NaN: nothing can be compared with it{first}")


def _names(module: nn.Module) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


# -- content --------------------------------------------------------------------------------------------------------
def _encode(calibration: Calibration) -> tuple[dict[str, Any], list[torch.Tensor]]:
    calls = zip(calibration.batches, calibration.outputs, strict=True)
    tree, tensors = flatten([[list(args), dict(kwargs), out] for (args, kwargs), out in calls])
    arrays: dict[int, tuple[int, np.ndarray]] = {}  # by identity: sites share them

    def listed(sites: Mapping[str, Statistics]) -> list[Any]:
        found = []
        for name, s in sites.items():
            kept = [
                None if a is None else arrays.setdefault(id(a), (len(arrays), a))[0]
                for a in (getattr(s, n) for n in _ARRAYS)
            ]
            found.append([name, s.rows, kept])
        return found

    values = {
        "model": calibration.model,
        "calls": tree,
        "held_out": calibration.held_out,
        "sites": listed(calibration.sites),
        "unseen": listed(calibration.unseen),
        "arrays": len(arrays),
    }
    return values, [*(torch.from_numpy(np.ascontiguousarray(a)) for _, a in arrays.values()), *tensors]


def _decode(found: archive.Archive) -> Calibration:
    values, count = found.values, found.values["arrays"]
    arrays = [t.numpy() for t in found.tensors[:count]]

    def sites(listed: list[Any]) -> dict[str, Statistics]:
        made = {}
        for name, rows, kept in listed:
            of_site: dict[str, Any] = {
                field: None if i is None else arrays[i] for field, i in zip(_ARRAYS, kept, strict=True)
            }
            made[name] = Statistics(**of_site, rows=rows)
        return made

    calls, held_out = unflatten(values["calls"], found.tensors[count:]), values["held_out"]
    if not isinstance(held_out, int) or not 0 <= held_out < len(calls):
        raise ValueError(f"{held_out} of {len(calls)} batches held out")
    return Calibration(
        values["model"],
        sites(values["sites"]),
        tuple((tuple(args), kwargs) for args, kwargs, _ in calls),
        tuple(out for _, _, out in calls),
        found.digest,
        held_out,
        sites(values["unseen"]),
    )
