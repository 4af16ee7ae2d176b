"""``effc costmodel`` for GPU kernels: collecting what their code needs, and models of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.cli import costmodel_tables as tables
from effc.compiler.ir.errors import OptionError

if TYPE_CHECKING:
    from effc.collecting.gpu import GpuRequest
    from effc.costmodel.gpu.dataset import GpuData
    from effc.costmodel.gpu.machine import Gpu


def is_one(place: Traversable) -> bool:
    """Whether a model is of GPU code."""
    from effc.costmodel.gpu.predictor import KIND
    from effc.costmodel.model.folder import card_of

    return card_of(place).get("kind") == KIND


def takes(places: list[Path]) -> bool:
    """Whether the trace files are of GPU kernels. OptionError: some are, and some are not."""
    from effc.costmodel.gpu.traces import KEY
    from effc.costmodel.parquet import files, holds

    found = {path: holds(path, KEY) for path in files(places)}
    if any(found.values()) and not all(found.values()):
        other = next(path for path, gpu in found.items() if not gpu)
        raise OptionError(f"traces of GPU kernels and others, as {other}: learn from one kind at a time")
    return all(found.values())


def request_of(args: argparse.Namespace, seconds: float) -> GpuRequest:
    """What to collect. OptionError: no triton, no such GPU, or none here."""
    from effc.collecting.gpu import GpuRequest
    from effc.compiler.codegen.gpu.installed import triton_reason
    from effc.compiler.codegen.gpu.target import GpuTarget

    reason = triton_reason()
    if reason is not None:
        raise OptionError(reason)
    if args.gpu is None:
        return _here(args, seconds)
    try:
        target = GpuTarget.named(args.gpu)
    except ValueError as error:
        raise OptionError(f"--gpu: {error}") from None
    return GpuRequest(args.out, target, args.schedules, args.seed, seconds)


def _here(args: argparse.Namespace, seconds: float) -> GpuRequest:
    """For the GPU of this machine, which times."""
    import torch

    from effc.collecting.gpu import GpuRequest
    from effc.collecting.gpu_clock import GpuClock
    from effc.compiler.gpu.build import GpuBuilder, host_functions, target_of
    from effc.compiler.toolchain import toolchain
    from effc.runtime.cache import Cache

    name, cache = torch.device("cuda", 0), Cache(None)
    builder = GpuBuilder({}, cache)
    if not torch.cuda.is_available() or (reason := builder.unusable(name)) is not None:
        told = "there is no GPU here" if not torch.cuda.is_available() else reason
        raise OptionError(f"{told}: name one with --gpu, sm_90 for example, for which code is compiled only")
    device = builder.device(name)
    clock = GpuClock(device, host_functions(toolchain(), cache).unchanged)
    return GpuRequest(args.out, target_of(device), args.schedules, args.seed, seconds, clock)


def train(args: argparse.Namespace) -> int:
    from effc.costmodel.gpu import training
    from effc.costmodel.gpu.predictor import save

    if args.base is not None:
        raise OptionError("--from adapts models of times: one of GPU code is trained anew")
    data = _data(args)
    with tables.progress() as watch:
        errors = _errors(data, (args.seed,), args, watch)
        trained = training.train(data, args.seed, args.workers, args.rounds or training.ROUNDS, watch)
    save(args.out, trained, data, {"errors": errors})
    print(f"{args.out}: a model of the code of {len(data)} GPU kernels")
    _told(data, errors)
    return 0


def judge(args: argparse.Namespace) -> int:
    data = _data(args)
    with tables.progress() as watch:
        errors = _errors(data, range(args.seeds), args, watch)
    _told(data, errors)
    if args.json is not None:
        args.json.write_text(json.dumps({"gpu_code": errors}, indent=1), encoding="utf-8")
    return 0


def show(place: Traversable) -> int:
    """What a model of GPU code was made of, and how good it is."""
    from effc.costmodel.gpu.machine import Gpu
    from effc.costmodel.gpu.predictor import load

    _, card = load(place)
    for gpu in map(Gpu.from_json, card["gpus"]):
        print(f"sm_{gpu.capability}, {gpu.processors} processors{', by descriptors' if gpu.descriptors else ''}")
    print(f"{card['records']} records: " + ", ".join(f"{count} {name}" for name, count in card["families"].items()))
    tables.gpu_code(card["errors"])
    return 0


def _data(args: argparse.Namespace) -> GpuData:
    from effc.costmodel.gpu.dataset import dataset
    from effc.costmodel.gpu.traces import read
    from effc.costmodel.parquet import files

    return dataset(map(read, files(args.traces)))


def _errors(data: GpuData, seeds: Sequence[int], args: argparse.Namespace, watch: Any) -> dict[str, dict[str, Any]]:
    from effc.costmodel.gpu.evaluation import held_out
    from effc.costmodel.gpu.training import ROUNDS

    found = held_out(data, seeds, _resident, args.workers, args.rounds or ROUNDS, watch)
    return {family: {who: e.to_json() for who, e in by.items()} for family, by in found.items()}


def _resident(gpu: Gpu, warps: int, registers: int, shared: int) -> int:
    from effc.compiler.codegen.gpu.occupancy import resident_blocks
    from effc.compiler.codegen.gpu.target import GpuTarget

    return resident_blocks(GpuTarget(gpu.capability, gpu.processors), warps, registers, shared)


def _told(data: GpuData, errors: Mapping[str, Mapping[str, Any]]) -> None:
    for reason, count in data.skipped.items():
        print(f"left out {count} records: {reason}")
    spilled = (data.fact("frame") > 0).sum()
    print(f"{len(data)} kernels, of which {spilled} spill registers and {data.refused.sum()} were refused")
    tables.gpu_code(errors)
