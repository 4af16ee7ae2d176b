"""The description of the hardware and the roofline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from effc.compiler.ir.expr import const, var
from effc.compiler.ir.spec import Dim, Instr, KernelSpec, Operand
from effc.costmodel import hardware, roofline
from effc.costmodel.hardware import Hardware, Speed, Speeds
from effc.runtime.cache import Cache
from effc.speed import host_hardware

MACHINE = Hardware(
    "host/64/",
    "a cpu",
    ("avx512f",),
    64,
    2,
    1 << 15,
    1 << 20,
    1 << 25,
    Speed(1e11, 1e10),
    Speed(6e10, 8e9),
    (2e11, 1e11, 4e10),
    True,
)
SPEEDS = Speeds(MACHINE.speed, MACHINE.one, MACHINE.caches)


def loops(
    *body: Instr, points: int = 1000, sizes: tuple[int, ...] = (1000, 1000), symbols: tuple[str, ...] = ()
) -> KernelSpec:
    size = var("s0") if symbols else const(points)
    roles = ("read",) * (len(sizes) - 1) + ("write",)
    operands = tuple(Operand("f32", role, const(n)) for role, n in zip(roles, sizes, strict=True))
    return KernelSpec("loops", (Dim(size),), operands, body, symbols)


def load(operand: int, address: Any = None) -> Instr:
    return Instr("load", (), "f32", (("address", var("d0") if address is None else address), ("operand", operand)))


def store(value: int, operand: int) -> Instr:
    return Instr("store", (value,), "", (("address", var("d0")), ("operand", operand)))


def gemm(m: int, n: int, k: int, dtype: str = "f32") -> KernelSpec:
    d0, d1, d2 = var("d0"), var("d1"), var("d2")
    body = (
        Instr("load", (), dtype, (("address", k * d0 + d2), ("operand", 0))),
        Instr("load", (), dtype, (("address", k * d1 + d2), ("operand", 1))),
        Instr("contract", (0, 1), "f32"),
        Instr("store", (2,), "", (("address", n * d0 + d1), ("operand", 2))),
    )
    sizes = ((dtype, "read", m * k), (dtype, "read", n * k), ("f32", "write", m * n))
    dims = (Dim(const(m)), Dim(const(n)), Dim(const(k), "reduction"))
    return KernelSpec("contraction", dims, tuple(Operand(t, r, const(s)) for t, r, s in sizes), body)


def test_a_copy_is_bound_by_its_bytes() -> None:
    spec = loops(load(0), store(0, 1), points=10**6, sizes=(10**6, 10**6))
    found = roofline.latency(spec, (), MACHINE)
    assert found.seconds == pytest.approx(8e6 / 1e10 + roofline.OVERHEAD)
    assert found.uncertainty > 0


def test_a_large_product_is_bound_by_its_arithmetic() -> None:
    found = roofline.latency(gemm(512, 512, 512), (), MACHINE)
    assert found.seconds == pytest.approx(2 * 512**3 / 1e11 + roofline.OVERHEAD)


def test_a_product_with_one_row_is_bound_by_the_weights() -> None:
    found = roofline.latency(gemm(1, 4096, 4096), (), MACHINE)
    assert found.seconds == pytest.approx(4 * (4096**2 + 2 * 4096) / 1e10 + roofline.OVERHEAD)


def test_low_precision_is_faster_only_where_the_cpu_has_it() -> None:
    spec = gemm(2048, 2048, 2048, "bf16")
    sets: tuple[tuple[str, ...], ...] = ((), ("avx512_bf16",), ("avx512_bf16", "amx_bf16"))
    plain, pairs, tiles = (roofline.latency(spec, (), replace(MACHINE, isa=isa)).seconds for isa in sets)
    assert plain - roofline.OVERHEAD == pytest.approx(2 * (pairs - roofline.OVERHEAD))
    assert plain - roofline.OVERHEAD == pytest.approx(16 * (tiles - roofline.OVERHEAD))


def test_transcendental_functions_cost_more_than_additions() -> None:
    def compute(op: str) -> int:
        return roofline.operations(loops(load(0), Instr(op, (0,), "f32"), store(1, 1)), {})

    assert compute("arith.negf") == 1000
    assert compute("math.exp") > 10 * compute("arith.negf")


def test_a_gather_reads_what_it_takes_not_the_whole_table() -> None:
    index = Instr("load", (), "i64", (("address", var("d0")), ("operand", 1)))
    spec = loops(index, load(0, var("v0")), store(1, 2), points=100, sizes=(10**6, 100, 100))
    assert roofline.bytes_touched(spec, {}) == 4 * 3 * 100


def test_a_border_writes_what_it_touches_not_what_it_encloses() -> None:
    fill = (
        Instr("constant", (), "f32", (("value", 0.0),)),
        Instr("store", (0,), "", (("address", 1000 * var("d0")), ("operand", 0))),
    )
    assert roofline.bytes_touched(loops(*fill, points=10, sizes=(9001,)), {}) == 4 * 10


def test_symbols_take_their_values() -> None:
    spec = loops(load(0), Instr("math.exp", (0,), "f32"), store(1, 1), symbols=("s0",))
    assert roofline.operations(spec, {"s0": 7}) == 7 * roofline.operations(spec, {"s0": 1})


# -- hardware ---------------------------------------------------------------------------------------------------------
def test_the_host_is_measured_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    found = host_hardware(cache)
    assert found.measured
    assert found.cores >= 1
    assert 1e9 < found.speed.flops < 1e15
    assert 1e8 < found.speed.bandwidth < 1e13
    assert found.speed.flops / found.speed.bandwidth > 0.5, (
        "arithmetic is faster than memory on every CPU of this century"
    )
    assert all(1e8 < rate < 1e13 for rate in (found.one.flops, found.one.bandwidth, *found.caches))
    assert found.speed_of(1) == (found.one if found.cores > 1 else found.speed)
    assert found.speed_of(found.cores) == found.speed
    assert host_hardware(cache) == found
    assert cache.info().entries["hardware"] == 1


def test_a_measurement_that_is_none_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effc.speed.measure", lambda target: SPEEDS)
    cache = Cache(tmp_path)
    kept = host_hardware(cache)
    (path,) = (cache.root / "hardware").glob("*/*")
    key = path.name
    cache.put("hardware", key, b'{"speed": {"flops": -1, "bandwidth": 1}}')
    assert host_hardware(cache) == kept
    assert cache.counters["discarded"] == 1


def test_without_a_measurement_the_speed_is_estimated() -> None:
    found = hardware.describe("host/32/", 32, lambda: None)
    assert not found.measured
    assert found.speed.flops > 1e9
    assert Hardware.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_machines_of_a_kind_are_told_from_others_by_what_they_are_not_by_measured_speeds() -> None:
    faster = replace(MACHINE, speed=Speed(2e11, 2e10), caches=(3e11, 2e11, 5e10))
    assert MACHINE.digest() == faster.digest()
    changes: list[dict[str, Any]] = [{"name": "b"}, {"cores": 4}, {"l3": 1}, {"isa": ()}, {"key": "host/32/"}]
    assert len({MACHINE.digest(), *(replace(MACHINE, **change).digest() for change in changes)}) == 6


@pytest.mark.parametrize("speed", [{"flops": 0, "bandwidth": 1}, {"flops": 1, "bandwidth": float("nan")}, {}])
def test_absurd_descriptions(speed: dict[str, float]) -> None:
    with pytest.raises((ValueError, KeyError)):
        Hardware.from_json({**MACHINE.to_json(), "speed": speed})
    with pytest.raises((ValueError, KeyError)):
        Hardware.from_json({**MACHINE.to_json(), "one": speed})


@pytest.mark.parametrize(
    "change", [{"cores": 0}, {"vector_bytes": -64}, {"l1": -1}, {"l3": float("inf")}, {"cores": float("nan")}]
)
def test_absurd_sizes(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a number above 0"):
        Hardware.from_json({**MACHINE.to_json(), **change})
