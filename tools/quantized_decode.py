"""A decode step with quantized weights, in turn with others' kernels: effc, torchao (int8 and int4 in groups of 64), OpenVINO (int8).

    python tools/quantized_decode.py --model llama_decode --threads 2

One process, all in turn in each round. All weights are quantized, the output projection's too, which is the embedding's. effc quantizes
itself (``passes={"quantize": ...}``, rounding to the nearest), and it gets models quantized by torchao's ``Int8WeightOnlyConfig`` and
``IntxWeightOnlyConfig``, whose output projection is a layer of its own, since torchao leaves one that shares its weights. torchao's own
kernels get these too: int8 through Inductor, int4 by ``PrototypeInt4WeightOnlyConfig`` (``_weight_int4pack_mm_for_cpu``) in eager and
through Inductor. OpenVINO gets NNCF's ``compress_weights``. Needs the packages torchao, openvino and nncf, and for Inductor a C++ compiler.

effc's own are taken twice: as ``torch.compile`` runs them, and saved and loaded again (``effc.save``, ``effc.load``).

Printed: relative L2 distance to the float model; then medians, how many times faster than effc's float step in the same way (20th to
80th percentile over the rounds), and the bytes of weights that a step reads over the time as a share of the read bandwidth measured in the
same rounds; then effc's lead over the others. A call is timed as a user makes it: Dynamo's guards, and torchao's tensors, which are taken
apart in Python in each call, are part of it. ``in effc``: the part of the time that effc's own code takes. ``--systems effc`` leaves the
others out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import zoo
from torch import nn

import effc
from effc.bench.spread import Spread
from effc.bench.systems.system import tensors
from effc.compiler.codegen.cpu.target import Target
from effc.runtime.executable import Executable
from effc.speed import Probe

#: Bits of a weight, scales included: a float32 scale a channel of 576 or more, and one for each 64 codes; effc's int4 has zero points, and
#: so has A8W4, whose groups have scales of a byte.
BITS = {"float": 32.0, "int8": 8.06, "int4": 4.5, "int4, effc": 4.625, "A8W4": 4.3}
#: effc's own quantization, by kind.
OPTIONS: dict[str, dict[str, Any]] = {
    "float": {},
    "int8": {"passes": {"quantize": {"weights": "int8"}}},
    "int4": {"passes": {"quantize": {"weights": "int4", "group": 64}}},
    "A8W4": {"passes": {"quantize": {"weights": "int4", "group": 64, "activations": "token", "scales": "dual"}}},
}


class OwnHead(nn.Module):
    """A language model whose output projection is a linear layer of its own."""

    model: Any  # one with `words` and `hidden`

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        rows, columns = model.words.weight.shape
        self.head = nn.Linear(columns, rows, bias=False)
        self.head.weight = nn.Parameter(model.words.weight.detach().clone())

    def forward(self, *inputs: Any) -> torch.Tensor:
        found: torch.Tensor = self.head(self.model.hidden(*inputs))
        return found


def quantized(module: nn.Module, kind: str, packed: bool = False) -> nn.Module:
    """A copy with the weights of its linears quantized by torchao; ``packed``: int4 in the form of torchao's own CPU kernel."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    found = copy.deepcopy(module)
    if kind == "int8":
        quantize_(found, Int8WeightOnlyConfig())
    elif kind == "int4" and packed:
        from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig

        quantize_(found, PrototypeInt4WeightOnlyConfig(group_size=64))
    elif kind == "int4":
        int4 = torch.int4  # type: ignore[attr-defined]
        quantize_(found, IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(64)))
    return found


@dataclass
class Entry:
    """``bytes``: of weights that a step reads. ``base``: what it is compared with, where that is not the first of all. ``seconds``: of a
    call, by round; ``inside``: of effc's part of it.
    """

    name: str
    kind: str
    call: Callable[[], Any]
    bytes: float
    base: Entry | None = None
    seconds: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)


def entries(module: Any, inputs: tuple[Any, ...], systems: list[str], threads: int) -> Iterator[Entry]:
    """What is timed."""
    weights = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear)) + module.words.weight.numel()
    own = OwnHead(module)

    def compiled(model: nn.Module, backend: str, **options: Any) -> Callable[[], Any]:
        call = torch.compile(model, backend=backend, options=options or None)
        return lambda: call(*inputs)

    base: Entry | None = None
    for kind, options in OPTIONS.items():
        size = weights * BITS["int4, effc" if kind == "int4" else kind] / 8
        yield Entry(f"effc {kind}", kind, compiled(module, "effc", **options), size)
        entry = Entry(f"effc {kind}, loaded", kind, _loaded(module, inputs, options), size, base)
        base = base or entry
        yield entry
    for kind in ("int8", "int4"):
        yield Entry(f"effc {kind} of torchao", kind, compiled(quantized(own, kind), "effc"), weights * BITS[kind] / 8)
    if "torchao" in systems:
        yield Entry("Inductor int8", "int8", compiled(quantized(own, "int8"), "inductor"), weights * BITS["int8"] / 8)
        model = quantized(own, "int4", packed=True)
        yield Entry("torchao int4, eager", "int4", lambda: model(*inputs), weights * BITS["int4"] / 8)
        yield Entry("torchao int4, Inductor", "int4", compiled(model, "inductor"), weights * BITS["int4"] / 8)
    if "openvino" in systems:
        yield Entry("OpenVINO int8", "int8", _openvino(own, inputs, threads), weights * BITS["int8"] / 8)


def _loaded(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Callable[[], Any]:
    with tempfile.TemporaryDirectory() as folder:
        effc.save(module, inputs, folder, options=options or None)
        model = effc.load(folder)
    return lambda: model(*inputs)


def _openvino(module: nn.Module, inputs: tuple[Any, ...], threads: int) -> Callable[[], Any]:
    import nncf
    import openvino

    model = openvino.convert_model(torch.export.export(module, inputs))
    flat = tensors(inputs)
    model.reshape({i: list(t.shape) for i, t in enumerate(flat)})
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    arrays = {i: t.numpy() for i, t in enumerate(flat)}

    def call() -> list[torch.Tensor]:
        results = request.infer(arrays, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(value) for value in results.values()]

    return call


class Inside:
    """Meanwhile counts the seconds that calls of effc's programs take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        run, own = Executable.__call__, self

        def call(self: Executable, *args: Any, **how: Any) -> list[torch.Tensor]:
            before, started = own.seconds, time.perf_counter()
            results = run(self, *args, **how)
            own.seconds = before + time.perf_counter() - started  # a call that validates calls again
            return results

        with mock.patch.object(Executable, "__call__", call):
            yield


def measure(entry: Entry, inside: Inside, at_least: float) -> None:
    """One round: the mean of as many calls as fill ``at_least`` seconds, after as many that are not timed."""
    for timed in (False, True):
        inside.seconds, started, count = 0.0, time.perf_counter(), 0
        while time.perf_counter() - started < at_least:
            entry.call()
            count += 1
        if timed:
            entry.seconds.append((time.perf_counter() - started) / count)
            entry.inside.append(inside.seconds / count)


def ratio(slow: Entry, fast: Entry) -> str:
    """How many times faster: median, 20th and 80th percentile of the rounds."""
    found = Spread.of_ratios(slow.seconds, fast.seconds)
    return f"{found.median:.2f}x ({found.low:.2f}-{found.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama_decode", help="one of effc bench whose class has the method hidden")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--systems", default="effc,torchao,openvino", help="by commas")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case, probe = zoo.build(args.model, small=False), Probe(Target.host())
    inputs = case.inputs(0, 0)
    bandwidths = []
    with torch.no_grad():
        (reference,) = tensors(case.module(*copy.deepcopy(inputs)))
        found = list(entries(case.module, inputs, args.systems.split(","), args.threads))
        for entry in found:
            (result,) = (t for t in tensors(entry.call()) if t.shape == reference.shape)
            distance = float((result - reference).norm() / reference.norm())
            print(f"{entry.name}: relative L2 distance to the float model {distance:.3g}", flush=True)
        inside = Inside()
        for _ in range(args.rounds):
            bandwidths.append(probe.speed(args.threads, 6).bandwidth)
            with inside.counted():
                for entry in found:
                    measure(entry, inside, 0.1)
    bandwidth = statistics.median(bandwidths)
    print(f"read {bandwidth / 1e9:.1f} GB/s ({min(bandwidths) / 1e9:.1f}-{max(bandwidths) / 1e9:.1f})")
    for entry in found:
        median, own = statistics.median(entry.seconds), statistics.median(entry.inside)
        share = statistics.median(entry.bytes / s / b for s, b in zip(entry.seconds, bandwidths, strict=True))
        part = f", {1e3 * own:.2f} ms in effc: {entry.bytes / own / bandwidth:.0%}" if own else ""
        print(
            f"{entry.name:24} {1e3 * median:7.2f} ms  {ratio(entry.base or found[0], entry):20} {share:.0%} of the read bandwidth{part}"
        )
    for ours in (e for e in found if e.name in ("effc int8", "effc int4")):
        for other in (e for e in found if not e.name.startswith("effc") and e.kind == ours.kind):
            print(f"{ours.name} over {other.name}: {ratio(other, ours)}")


if __name__ == "__main__":
    main()
