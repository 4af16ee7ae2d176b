"""The launcher: what it hands to the CUDA driver, of which a stub keeps the arguments, and what it makes of the driver's answers."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from gpu_programs import SM90, InterpretingDriver, TextTools, compiled_for_gpu, watched
from importer_harness import compile_and_run
from torch import nn
from triton_here import needs_triton

from effc.compiler import gpu_build
from effc.compiler.gpu_build import build_gpu, kernels_of
from effc.compiler.ir.errors import DeviceError
from effc.compiler.ir.program import Program
from effc.compiler.pipeline.lower import lower
from effc.compiler.toolchain import Toolchain, toolchain
from effc.runtime.cache import Cache
from effc.runtime.gpu.driver import CudaDriver, Parameters, cuda_driver
from effc.runtime.gpu.executable import GpuExecutable

_POINTER = ctypes.POINTER(ctypes.c_void_p)


@dataclass
class StubCuda:
    """The part of libcuda that is called, with its C types. ``answer``: what every function returns."""

    answer: int = 0
    images: list[bytes] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    parameters: int = 0

    def __post_init__(self) -> None:
        c = ctypes
        self.cuModuleLoadData = c.CFUNCTYPE(c.c_int, _POINTER, c.c_char_p)(self._load)
        self.cuModuleGetFunction = c.CFUNCTYPE(c.c_int, _POINTER, c.c_void_p, c.c_char_p)(self._function)
        self.cuFuncSetAttribute = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int, c.c_int)(self._attribute)
        self.cuGetErrorString = c.CFUNCTYPE(c.c_int, c.c_int, c.POINTER(c.c_char_p))(self._words)
        sizes = [c.c_uint] * 7
        self.cuLaunchKernel = c.CFUNCTYPE(
            c.c_int, c.c_void_p, *sizes, c.c_void_p, c.c_void_p, c.c_void_p
        )(self._launch)  # fmt: skip

    def _load(self, module: Any, image: bytes) -> int:
        self.images.append(image)
        module[0] = 0x11
        return self.answer

    def _function(self, function: Any, module: int, name: bytes) -> int:
        assert module == 0x11
        self.names.append(name.decode())
        function[0] = 0x20 + len(self.names)
        return self.answer

    def _attribute(self, function: int, attribute: int, value: int) -> int:
        assert (function, attribute) == (0x20 + len(self.names), 8)
        self.shared.append(value)
        return self.answer

    def _words(self, code: int, text: Any) -> int:
        text[0] = b"invalid argument"
        return 0

    def _launch(self, function: int, *rest: Any) -> int:
        gx, gy, gz, bx, by, bz, shared, stream, parameters, extra = rest
        assert (gy, gz, by, bz, extra) == (1, 1, 1, 1, None)
        slots = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        values = [ctypes.c_uint64.from_address(slots[i] or 0).value for i in range(self.parameters)]
        self.launches.append(
            {"function": function, "grid": gx, "threads": bx, "shared": shared, "stream": stream, "values": values}
        )
        return self.answer


class StubDriver(CudaDriver):
    def current(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext()

    def stream(self, device: torch.device) -> int:
        return 0xABC


def test_a_launch_hands_over_every_parameter() -> None:
    cuda = StubCuda(parameters=3)
    driver, parameters = CudaDriver(cuda), Parameters(3)
    kernel = driver.load(b"image", "k", 1 << 10)
    assert (cuda.images, cuda.names, cuda.shared) == ([b"image"], ["k"], [])
    parameters.values[0], parameters.values[1] = 0x7F0000001000, 5
    driver.launch(kernel, 12, 128, 1 << 10, 0xABC, parameters)
    assert cuda.launches == [
        {
            "function": 0x21,
            "grid": 12,
            "threads": 128,
            "shared": 1024,
            "stream": 0xABC,
            "values": [0x7F0000001000, 5, 0],
        }
    ]


def test_more_shared_memory_than_usual_is_asked_for() -> None:
    cuda = StubCuda()
    CudaDriver(cuda).load(b"image", "k", 100 << 10)
    assert cuda.shared == [100 << 10]


def test_the_drivers_refusal_is_an_error_with_its_words() -> None:
    with pytest.raises(DeviceError, match=r"does not load the kernel k: invalid argument \(CUDA error 1\)"):
        CudaDriver(StubCuda(answer=1)).load(b"image", "k", 0)


def test_without_a_driver_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFC_LIBCUDA", "no_such_library.so")
    cuda_driver.cache_clear()
    with pytest.raises(DeviceError, match=r"no_such_library\.so cannot be loaded"):
        cuda_driver()


def graph_of(model: nn.Module, *inputs: torch.Tensor, dynamic: bool = False) -> str:
    with torch.no_grad():
        _, capture = compile_and_run(model, inputs, dynamic=dynamic)
    return capture.regions[0].text


def test_arguments_are_operands_scratch_memory_error_cell_and_symbols() -> None:
    text = graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True)
    cuda = StubCuda(parameters=6)
    executable = built(text, StubDriver(cuda))
    x = torch.randn(6, 8)
    (y,) = executable([6, 8], [x])
    (launch,) = cuda.launches
    values, threads = launch["values"], launch["threads"]
    assert values[:2] == [x.data_ptr(), y.data_ptr()]
    assert values[3] == executable._error.data_ptr()
    assert values[4:] == [6, 8]
    assert (launch["stream"], threads % 32) == (0xABC, 0)


def built(text: str, driver: Any, tools: Any = None, cache: Cache | None = None) -> GpuExecutable:
    return build_gpu(
        text,
        options={},
        cache=cache,
        target=SM90,
        tools=cast(Toolchain, tools or TextTools()),
        driver=driver,
        device=torch.device("cpu"),
    )


def test_sizes_beyond_32_bits_are_refused() -> None:
    executable = built(graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True), StubDriver(StubCuda(parameters=6)))
    with pytest.raises(DeviceError, match=r"beyond 2\*\*31"):
        executable._plan((1 << 32, 8))


def test_empty_tensors_launch_nothing() -> None:
    cuda = StubCuda(parameters=6)
    executable = built(graph_of(nn.Softmax(-1), torch.randn(5, 7), dynamic=True), StubDriver(cuda))
    (y,) = executable([0, 8], [torch.randn(0, 8)])
    assert y.shape == (0, 8)
    assert cuda.launches == []


class Halves(nn.Module):
    """Two chains, the second of which writes its part of the result at an address that is no multiple of 16 bytes."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.exp(), y.sin()])


def test_kernels_on_odd_offsets_are_compiled_for_them() -> None:
    program: Program = lower(graph_of(Halves(), torch.randn(7), torch.randn(9)), {"target": "sm_90"})
    assert sorted(aligned for _, aligned in kernels_of(program)) == [False, True]
    driver = InterpretingDriver()
    compiled = compiled_for_gpu(Halves(), driver)
    x, y = torch.randn(7), torch.randn(9)
    with torch.no_grad(), watched(driver):
        torch.testing.assert_close(compiled(x, y), Halves()(x, y))


@needs_triton
def test_cubins_are_built_by_workers_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own; a second build asks none of them for a kernel."""
    text = graph_of(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), torch.randn(32, 64))
    cache = Cache(tmp_path / "cache")
    first = built(text, StubDriver(StubCuda()), toolchain(), cache)
    (kernel,) = first.code[0].launches
    assert kernel.image[:4] == b"\x7fELF"
    # three operands and the result, scratch memory, the error cell; behind them triton's own
    assert kernel.parameters - 6 in (1, 2)
    asked: list[str] = []

    class Counting(TextTools):
        def request(self, kind: str, payload: Any) -> Any:
            asked.append(kind)
            return super().request(kind, payload)

    second = built(text, StubDriver(StubCuda()), Counting(), cache)
    assert [astuple(c) for c in second.code] == [astuple(c) for c in first.code]
    assert "gpu" not in asked
    monkeypatch.setattr(gpu_build, "triton_version", lambda: "9.9")
    built(text, StubDriver(StubCuda()), Counting(), cache)
    assert "gpu" in asked, "another triton compiles anew"


def test_building_for_a_gpu_imports_neither_mlir_nor_triton() -> None:
    code = "import sys, effc.compiler.gpu_build; sys.exit(any(m.split('.')[0] in ('torch_mlir', 'triton') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
