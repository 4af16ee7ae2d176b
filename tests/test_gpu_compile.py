"""What triton makes of the kernels: tensor-core instructions where there are products, nothing in local memory. Without a GPU."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from contraction_cases import Case
from gpu_cases import CASES, GpuCase, linear
from gpu_interpreted import SM80, SM90, SM100, TMA, Kernel, roles_of
from triton_here import needs_triton

from effc.compiler.codegen.gpu.compile import TENSOR_MEMORY, Compiled, compile_launch, info_of, resources
from effc.compiler.codegen.gpu.contraction.schedule import candidates, chosen, shared_bytes
from effc.compiler.codegen.gpu.fitting import compile_fitting
from effc.compiler.codegen.gpu.hardware import CAPABILITIES
from effc.compiler.codegen.gpu.installed import reads_descriptors
from effc.compiler.codegen.gpu.launch import Launch
from effc.compiler.codegen.gpu.target import GpuTarget
from effc.compiler.ir.errors import LoweringError
from effc.compiler.ir.expr import const


def compiled(case: GpuCase, target: GpuTarget) -> list[Compiled]:
    return [compile_launch(launch, target) for launch in Kernel(case.spec, target).emitted.launches]


@needs_triton
@pytest.mark.parametrize("target", [SM80, SM90], ids=lambda t: t.key)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_kernels_compile_to_what_they_are_meant_to(case: GpuCase, target: GpuTarget) -> None:
    kernels = compiled(case, target)
    for kernel in kernels:
        assert kernel.frame == 0, "registers are spilled"
        assert ".local" not in kernel.ptx
        assert 0 < kernel.registers <= 255
        assert kernel.shared <= target.shared_bytes
    first = kernels[0].ptx
    wide = case.wide and target.has_wgmma
    assert ("wgmma.mma_async" in first) == (case.cores and wide)
    assert ("mma.sync" in first or wide) == case.cores
    for kernel in kernels:
        assert_launched_as_compiled(kernel)


def assert_launched_as_compiled(kernel: Compiled) -> None:
    """The cubin itself says what the driver takes at a launch: each parameter's bytes, and the threads of a block."""
    parameters, threads = dict[int, int](), list[int]()
    for attribute, value in info_of(kernel.cubin, f".nv.info.{kernel.name}"):
        if attribute == 0x17:  # EIATTR_KPARAM_INFO: an index, number, offset, and the size above 18 bits of others
            _, number, _, packed = struct.unpack("<IHHI", value)
            parameters[number] = packed >> 18
        elif attribute == 0x10:  # EIATTR_REQNTID
            threads += struct.unpack("<III", value)
    assert tuple(parameters[i] for i in range(len(parameters))) == kernel.parameters
    assert threads == [32 * kernel.warps, 1, 1]


@needs_triton
@pytest.mark.parametrize("target", [SM80, SM90], ids=lambda t: t.key)
def test_sizes_are_parameters_of_four_bytes(target: GpuTarget) -> None:
    """Each in a word of its own, of which the driver reads the lower half; what is triton's own comes behind them."""
    spec = Case(("s0", "s1", "s2"), 1, ("s2", 0, 1), (0, "s2", 1), ("s1", 1, 0), "f16").spec()
    for launched in Kernel(spec, target).emitted.launches:
        kernel = compile_launch(launched, target)
        pointers = len(spec.operands) + 2
        assert kernel.parameters[: pointers + 3] == (8,) * pointers + (4,) * 3
        assert set(kernel.parameters[pointers + 3 :]) <= {8}
        assert_launched_as_compiled(kernel)


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_capability_has_a_kernel_that_fits(capability: int) -> None:
    """With the widest instruction that its tensor cores have, where the tile is large."""
    target = GpuTarget.named(f"sm_{capability}")
    _, (kernel, *_) = compile_fitting(linear(4096, 4096, 512, "f16"), target, aligned=True)
    words = {"mma": "mma.sync", "wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma"}
    found = [name for name, word in words.items() if word in kernel.ptx]
    assert found == [target.hardware.tensor_cores]
    assert (kernel.frame, kernel.shared <= target.shared_bytes) == (0, True)
    assert_launched_as_compiled(kernel)


@needs_triton
def test_factors_are_loaded_ahead_and_by_vectors() -> None:
    """Aligned pointers and strides known to be multiples of 16 bytes: asynchronous copies of 16 bytes."""
    (kernel,) = compiled(CASES[0], SM90)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], (\w+)", kernel.ptx)
    assert {int(size, 0) for size in copies} == {16}


@needs_triton
@pytest.mark.parametrize("case", [case for case in CASES if case.cores], ids=lambda c: c.name)
def test_products_compile_for_blackwell(case: GpuCase) -> None:
    """Large tiles are its own products, the others those of single warps."""
    kernel, *_ = compiled(case, SM100)
    assert kernel.frame == 0
    assert ".local" not in kernel.ptx
    assert kernel.shared <= SM100.shared_bytes
    assert "tcgen05.mma" in kernel.ptx or "mma.sync" in kernel.ptx
    assert case is not CASES[0] or "tcgen05.mma" in kernel.ptx


needs_descriptors = pytest.mark.skipif(not reads_descriptors(90), reason="this triton's descriptors are not known")


@needs_triton
@needs_descriptors
def test_descriptors_are_the_hardwares() -> None:
    """Of which each program has two, in global memory."""
    for spec, grid in ((linear(2048, 2048, 2048, "f16"), 128), (linear(4096, 4096, 4096, "bf16"), 132)):
        (launched,) = Kernel(spec, TMA).emitted.launches
        assert launched.grid.constant == grid
        kernel = compile_launch(launched, TMA)
        assert "cp.async.bulk.tensor.2d.shared::cluster.global" in kernel.ptx
        assert "wgmma.mma_async" in kernel.ptx
        assert not re.search(r"cp\.async\.c[ag]", kernel.ptx)
        assert (kernel.frame, kernel.own) == (0, 256)
        assert kernel.shared <= TMA.shared_bytes


@needs_triton
@needs_descriptors
@pytest.mark.parametrize("result", ["f16", "f32"])
def test_programs_that_take_tile_after_tile_have_the_shared_memory_that_is_counted(result: str) -> None:
    """The next tile's factors are on their way while results go to memory through it too."""
    spec = linear(4096, 4096, 4096, "f16", result)
    offered = [s for s in candidates(roles_of(spec), TMA, 1000) if s["persistent"]]
    assert offered
    for schedule in {(s["bm"], s["bn"]): s for s in reversed(offered[:4])}.values():
        roles = roles_of(replace(spec, schedule=schedule))
        kernel, *_ = compiled(replace(CASES[0], spec=roles.spec), TMA)
        assert kernel.shared <= shared_bytes(roles, chosen(roles, TMA)) + 128, "barriers and the tile's number"
        assert kernel.shared <= TMA.shared_bytes


@needs_triton
@pytest.mark.parametrize("target", [SM80, SM90], ids=lambda t: t.key)
def test_codes_are_read_by_vectors(target: GpuTarget) -> None:
    """Of one row a thread reads 32 codes of 4 bits at once, and a scale once a group; of many rows copies are asynchronous."""
    cases = {case.name: case for case in CASES}
    one, *_ = compiled(cases["int4 weights bf16 1x4096x4096"], target)
    widths = re.findall(r"ld\.global[\w.:]*", one.ptx)
    assert widths.count("ld.global.v4.b32") >= 1
    assert not any(width.endswith((".b8", ".b16")) for width in widths)
    assert len(widths) <= 8
    many, *_ = compiled(cases["int4 weights bf16 32x1024x1024"], target)
    assert ".b8" not in "".join(re.findall(r"ld\.global[\w.:]*", many.ptx))
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], (\w+)", many.ptx)
    assert {int(size, 0) for size in copies} <= {8, 16}


@needs_triton
def test_parameters_are_the_launchs_and_tritons_own_behind() -> None:
    (kernel,) = compiled(CASES[0], SM90)
    # three factors and the bias, the result, scratch memory, the error cell; then what triton adds, pointers all
    assert kernel.parameters[:6] == (8,) * 6
    assert set(kernel.parameters[6:]) == {8}
    assert len(kernel.parameters) in (7, 8)


@needs_triton
def test_what_triton_refuses_is_an_error_with_its_words() -> None:
    with pytest.raises(LoweringError, match=r"triton .* does not compile broken"):
        compile_launch(Launch("broken", "module { tt.func }", const(1), 4, 2), SM80)


@needs_triton
def test_triton_needs_no_torch() -> None:
    code = "import sys, triton; from triton.backends.compiler import GPUTarget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@needs_triton
def test_more_shared_memory_than_a_block_may_have_is_refused_by_name() -> None:
    (launch,) = Kernel(CASES[0].spec, SM90).emitted.launches
    with pytest.raises(
        LoweringError, match=r"needs \d+ bytes of shared memory, and a block of an sm_86 has at most 101376"
    ):
        compile_launch(launch, GpuTarget.named("sm_86"))


@needs_triton
def test_more_tensor_memory_than_a_processor_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As triton's own launcher does. No kernel here needs so much, so the compiler is a stand-in."""
    made = SimpleNamespace(metadata=SimpleNamespace(shared=0, tmem_size=2 * TENSOR_MEMORY))
    monkeypatch.setattr("triton.compile", lambda *args, **kwargs: made)
    with pytest.raises(
        LoweringError, match="k needs 1024 columns of tensor memory, and a processor of an sm_100 has 512"
    ):
        compile_launch(Launch("k", "", const(1), 4, 2), SM100)


@needs_triton
@pytest.mark.parametrize(("kind", "align"), [("global", 256), ("profile", 16)])
def test_memory_of_tritons_own_that_launches_do_not_give_is_refused(
    kind: str, align: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Profiles, and what is aligned to more than a descriptor. No kernel here needs any, so the compiler is a stand-in."""
    found = {f"{kind}_scratch_size": 128, f"{kind}_scratch_align": align}
    made = SimpleNamespace(metadata=SimpleNamespace(shared=0, **found))
    monkeypatch.setattr("triton.compile", lambda *args, **kwargs: made)
    with pytest.raises(LoweringError, match="k needs global memory of triton's own"):
        compile_launch(Launch("k", "", const(1), 4, 2), SM80)


@pytest.mark.parametrize(("installed", "state"), [(None, "which is not installed"), ("3.1.0", "which is 3.1.0 here")])
def test_without_a_triton_that_serves_the_error_says_what_to_install(
    installed: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effc.compiler.codegen.gpu.installed._installed", lambda: installed)
    with pytest.raises(LoweringError, match=rf"triton 3.3 or newer, {state}: pip install 'effc\[gpu\]'"):
        compile_launch(Launch("k", "", const(1), 4, 2), SM80)


def test_what_is_no_cubin_is_refused() -> None:
    with pytest.raises(ValueError, match="not a cubin"):
        resources(b"\x7fELF" + bytes(60), "k")


def test_targets_by_name() -> None:
    assert GpuTarget.named("sm_90").shared_bytes == 227 << 10
    for name in ("sm_70", "host", "sm_"):
        with pytest.raises(
            ValueError, match=r"unknown GPU target .*: there are sm_80 and newer \(sm_80, sm_86, .*sm_120"
        ):
            GpuTarget.named(name)


def test_a_gpu_newer_than_any_that_is_known_has_what_all_of_them_have() -> None:
    newer, known = GpuTarget.named("sm_130").hardware, [GpuTarget.named(f"sm_{c}").hardware for c in CAPABILITIES]
    assert newer.block_shared == min(h.block_shared for h in known)
    assert newer.warps == min(h.warps for h in known)
    assert newer.tensor_cores == "mma"
    assert newer.rates == known[-1].rates
