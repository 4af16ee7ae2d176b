"""The runtime as its callers see it: results, placements, errors, threads, forks, profiles."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from native_programs import N, at, build, sum_program, sum_spec, sum_text, vector

from effc.compiler.ir.errors import VerificationError
from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.program import Call, Input, Output, Program
from effc.runtime.executable import Executable
from effc.runtime.pages import FRESH
from effc.runtime.stepwise import Step
from effc.runtime.threads import threads


@pytest.fixture(scope="module")
def summing() -> Executable:
    return build(sum_program(), [sum_text(3)])


def chain() -> Program:
    """``(a + b) + (a + b)`` through the arena, then added in place to input 1; offsets depend on the symbol."""
    pair = sum_spec(2)
    calls = (
        Call(0, (at("input", 0), at("input", 1), at("arena", 0, "(s0*4 + 63) // 64 * 64")), (N,), "a+b", "model.py:1"),
        Call(
            0,
            (at("arena", 0, "(s0*4 + 63) // 64 * 64"), at("arena", 0, "(s0*4 + 63) // 64 * 64"), at("output", 0)),
            (N,),
        ),
        Call(0, (at("output", 0), at("input", 1), at("output", 1)), (N,)),
    )
    return Program(
        ("s0",), (Input(vector()), Input(vector())), (Output(vector()), Output(vector(), mutates=1)), (), (pair,), calls,
        as_expr("(s0*4 + 63) // 64 * 128"),
    )  # fmt: skip


@pytest.mark.parametrize("size", [0, 1, 7, 16, 1009])
def test_result_is_the_sum_for_every_size(summing: Executable, size: int) -> None:
    a, b, c = torch.randn(3, size)
    (result,) = summing((size,), [a, b, c])
    torch.testing.assert_close(result, a + b + c, rtol=0, atol=1e-6)


def test_offset_inputs_are_read_from_their_first_element(summing: Executable) -> None:
    base = torch.randn(40)
    (result,) = summing((9,), [base[3:12], base[13:22], base[31:]])
    torch.testing.assert_close(result, base[3:12] + base[13:22] + base[31:], rtol=0, atol=1e-6)


def test_arena_mutation_and_symbolic_offsets() -> None:
    run = build(chain(), [sum_text(2)])
    for size in (5, 100, 33, 5):
        a, b = torch.randn(2, size)
        expected, version = 2 * (a + b), b._version
        mutated = expected + b
        (result,) = run((size,), [a, b])
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(b, mutated)
        assert b._version > version, "autograd must see that an input was written"


def test_results_of_two_calls_do_not_share_memory(summing: Executable) -> None:
    x, y = torch.ones(3, 8), torch.full((3, 8), 2.0)
    (first,) = summing((8,), list(x))
    (second,) = summing((8,), list(y))
    assert first.tolist() == [3.0] * 8
    assert second.tolist() == [6.0] * 8


def test_large_results_lie_in_huge_pages(summing: Executable) -> None:
    """Writing them for the first time is then not mostly the system's clearing of small pages."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text(encoding="ascii"):
        pytest.skip("this system gives no huge pages")
    a = torch.arange(FRESH // 4 + 1000, dtype=torch.float32)
    (result,) = summing((len(a),), [a, a, a])
    assert torch.equal(result, 3 * a)
    asked, inside = False, False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        words = line.split()
        if "-" in words[0]:
            start, end = (int(word, 16) for word in words[0].split("-"))
            inside = start <= result.data_ptr() + FRESH // 2 < end
        elif inside and words[0] == "VmFlags:":
            asked = "hg" in words  # whether the system has huge pages free at the moment is its own affair
    assert asked


def test_output_takes_the_strides_of_the_program() -> None:
    program = sum_program(1)
    spread = replace(
        program.outputs[0].tensor, sizes=(as_expr(2), as_expr("s0 // 2")), strides=(as_expr(1), as_expr(2))
    )
    run = build(replace(program, outputs=(Output(spread),)), [sum_text(1)])
    (result,) = run((6,), [torch.arange(6.0)])
    assert result.stride() == (1, 2)
    assert result.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


def test_failed_check_names_message_and_line_and_the_next_call_works() -> None:
    run = build(sum_program(2, "index out of range in self"), [sum_text(2, "index out of range in self")])
    good, bad = torch.ones(4), torch.tensor([1.0, -1.0, 1.0, 1.0])
    with pytest.raises(IndexError, match=r"index out of range in self \(at model.py:12\)"):
        run((4,), [bad, good])
    with pytest.raises(IndexError, match="in self"):
        run.run_stepwise((4,), [bad, good], None)
    assert run((4,), [good, good])[0].tolist() == [2.0] * 4


def test_wrong_number_of_symbols_is_an_error(summing: Executable) -> None:
    with pytest.raises(ValueError, match="takes symbols"):
        summing((4, 4), list(torch.ones(3, 4)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.ones(4, dtype=torch.float64), "float64"),
        (torch.ones(5), r"\[5\]"),
        (torch.ones(8)[::2], r"strides \[2\]"),
    ],
)
def test_check_refuses_other_inputs(summing: Executable, wrong: torch.Tensor, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        summing((4,), [torch.ones(4), wrong, torch.ones(4)], check=True)


@pytest.mark.parametrize("stepwise", [False, True])
def test_validate_copies_other_strides_and_writes_mutations_back(stepwise: bool) -> None:
    run = build(chain(), [sum_text(2)])
    a, store = torch.randn(5), torch.randn(10)
    b = store[::2]
    expected = 2 * (a + b)
    mutated, untouched = expected + b, store[1::2].clone()
    (result,) = run.run_stepwise((5,), [a, b], None, validate=True) if stepwise else run((5,), [a, b], validate=True)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(store[::2], mutated)
    assert torch.equal(store[1::2], untouched)


def test_many_threads_at_once(summing: Executable) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for step in range(200):
            size = 1 + (seed * 37 + step * 11) % 500
            a, b, c = torch.randn(3, size, generator=generator)
            if not torch.allclose(summing((size,), [a, b, c])[0], a + b + c, atol=1e-5):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_forked_child_runs_serially_and_right(summing: Executable) -> None:
    inputs = list(torch.ones(3, 64))
    summing((64,), inputs)
    torch.ones(1 << 20).add_(1)  # wakes torch's pool, which a child does not inherit
    pid = os.fork()
    if pid == 0:
        right = summing((64,), inputs)[0].tolist() == [3.0] * 64
        os._exit(0 if right and threads().count() == 1 and "fork" in summing.notes[0] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert not threads().why_serial()


def test_threads_follow_torch() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert threads().count() == 1
        torch.set_num_threads(2)
        assert threads().count() == 2
    finally:
        torch.set_num_threads(before)


def test_profiler_sees_every_kernel_with_its_line() -> None:
    run = build(chain(), [sum_text(2)])
    with torch.profiler.profile() as profile:
        (result,) = run((8,), list(torch.ones(2, 8)))
    assert result.tolist() == [4.0] * 8
    names = [event.key for event in profile.key_averages()]
    assert "effc::a+b [model.py:1]" in names


def test_observer_sees_operands_before_and_after_each_call() -> None:
    run = build(chain(), [sum_text(2)])
    seen: list[tuple[str, int, list[float]]] = []

    class Watch:
        def before(self, step: Step) -> None:
            if step.pointers[2] not in step.pointers[:2]:
                step.operand(2).fill_(float("nan"))

        def after(self, step: Step) -> None:
            seen.append((step.call.name, step.number, step.operand(2).tolist()))

    run.run_stepwise((3,), list(torch.ones(2, 3)), Watch())
    assert seen == [("a+b", 0, [2.0] * 3), ("", 1, [4.0] * 3), ("", 2, [5.0] * 3)]


def test_freed_executable_unmaps_its_code() -> None:
    def code_bytes() -> int:
        with open("/proc/self/maps") as maps:
            fields = [line.split() for line in maps]
        ranges = [[int(end, 16) for end in f[0].split("-")] for f in fields if f[1] == "r-xp" and len(f) == 5]
        return sum(end - start for start, end in ranges)

    run = build(sum_program(), [sum_text(3)])
    held = code_bytes()
    del run
    gc.collect()
    assert code_bytes() < held
