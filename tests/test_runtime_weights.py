"""Derived weights follow the parameters, however these change."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from counting import calls
from native_programs import at, build, sum_spec, sum_text, vector, weighted_program

from effc.compiler.ir.expr import as_expr
from effc.compiler.ir.program import Call, Derived, Input, Output
from effc.runtime import guard, shared_weights
from effc.runtime.executable import Executable
from effc.runtime.guard import SAMPLE_PERIOD, content_sample
from effc.runtime.tensor_layout import tensor_layout

SIZE = 8


@pytest.fixture(params=["native", "python"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executable:
    """``x + p0 + p1``, the parameters in derived form, with either way to compare them."""
    if request.param == "python":
        monkeypatch.setattr(guard, "tensor_layout", lambda: None)
    return build(weighted_program(2, SIZE), [sum_text(3)])


def test_layout_of_tensors_is_found_on_this_build() -> None:
    assert tensor_layout() is not None


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(SIZE))
        self.b = torch.nn.Parameter(torch.randn(SIZE))

    def inputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, self.a, self.b]


def _step(m: Model) -> None:
    optimizer = torch.optim.SGD(m.parameters(), lr=0.5)
    (m.a * m.b).sum().backward()
    optimizer.step()


def _fused_adam(m: Model) -> None:
    optimizer = torch.optim.Adam(m.parameters(), lr=0.5, fused=True)
    (m.a * m.b).sum().backward()
    optimizer.step()


def _load(m: Model) -> None:
    m.load_state_dict({"a": torch.ones(SIZE), "b": torch.ones(SIZE)})


def _assign(m: Model) -> None:
    m.load_state_dict({"a": torch.ones(SIZE), "b": torch.ones(SIZE)}, assign=True)


def _swap_data(m: Model) -> None:
    m.a.data = torch.full((SIZE,), 7.0)


def _swap_data_twice(m: Model) -> None:
    m.a.data = m.a.data * 2
    m.a.data = m.a.data * 2  # may well get the address of the first


def _replace(m: Model) -> None:
    m.b = torch.nn.Parameter(torch.full((SIZE,), 5.0))


def _write_view(m: Model) -> None:
    with torch.no_grad():
        m.a.view(2, 4)[1, 2] = 3.0


def _swap_tensors(m: Model) -> None:
    torch.utils.swap_tensors(m.a, torch.nn.Parameter(torch.full((SIZE,), 9.0)))


def _exchange(m: Model) -> None:
    m.a.data, m.b.data = m.b.data * 3, m.a.data


def _set(m: Model) -> None:
    with torch.no_grad():
        m.a.set_(torch.full((SIZE,), 4.0))  # type: ignore[call-overload]  # torch's stubs know storages only


@pytest.mark.parametrize(
    "change",
    [
        _step,
        _fused_adam,
        _load,
        _assign,
        _swap_data,
        _swap_data_twice,
        _replace,
        _write_view,
        _swap_tensors,
        _exchange,
        _set,
    ],
)
def test_change_is_seen_at_the_next_call(run: Executable, change: Callable[[Model], None]) -> None:
    model, x = Model(), torch.randn(SIZE)
    for _ in range(3):
        torch.testing.assert_close(run((), model.inputs(x))[0], (x + model.a + model.b).detach())
    change(model)
    torch.testing.assert_close(run((), model.inputs(x))[0], (x + model.a + model.b).detach())


@pytest.mark.parametrize("form", ["data", "numpy", "inference"])
def test_unversioned_write_is_seen_within_the_sampling_period(run: Executable, form: str) -> None:
    model, x = Model(), torch.randn(SIZE)
    inputs = model.inputs(x)
    if form == "inference":
        with torch.inference_mode():
            inputs = [x, torch.randn(SIZE), torch.randn(SIZE)]
    run((), inputs)
    if form == "data":
        inputs[1].data.add_(1)
    elif form == "numpy":
        inputs[1].detach().numpy()[:] = 2
    else:
        with torch.inference_mode():
            inputs[1].add_(1)
    results = [run((), inputs)[0] for _ in range(SAMPLE_PERIOD)]
    torch.testing.assert_close(results[-1], (inputs[0] + inputs[1] + inputs[2]).detach())


def test_refresh_sees_every_write(run: Executable) -> None:
    model, x = Model(), torch.randn(SIZE)
    run((), model.inputs(x))
    model.a.data[3] += 1
    run.refresh()
    torch.testing.assert_close(run((), model.inputs(x))[0], (x + model.a + model.b).detach())


def test_nothing_is_derived_twice_without_a_change(run: Executable) -> None:
    model, x = Model(), torch.randn(SIZE)
    for _ in range(2 * SAMPLE_PERIOD):
        run((), model.inputs(x))
    assert run.counters["derivations"] == 1
    for _ in range(3):
        run((), [x, model.a.detach(), model.b.detach()])
    assert run.counters["derivations"] == 1, "aliases of the same storages at the same versions"


def test_programs_share_what_is_derived_alike(run: Executable) -> None:
    other = build(weighted_program(2, SIZE), [sum_text(3)])
    model, x = Model(), torch.randn(SIZE)

    def derived(executable: Executable) -> list[int]:
        torch.testing.assert_close(executable((), model.inputs(x))[0], (x + model.a + model.b).detach())
        assert executable.weights is not None
        return [tensor.data_ptr() for tensor in executable.weights.current(model.inputs(x)).derived]

    assert derived(run) == derived(other)
    with torch.no_grad():
        model.a.mul_(2)
    first = derived(run)
    assert derived(other) == first, "derived anew once, for both"
    model.b.data[3] += 1  # torch does not version this
    run.refresh()
    assert set(derived(run)).isdisjoint(first), "refresh trusts nothing that was derived before"


def test_two_models_of_one_program_keep_their_own_weights(run: Executable) -> None:
    first, second, x = Model(), Model(), torch.randn(SIZE)
    for _ in range(5):
        for model in (first, second):
            torch.testing.assert_close(run((), model.inputs(x))[0], (x + model.a + model.b).detach())
    assert run.counters["derivations"] == 2


def test_tied_parameters(run: Executable) -> None:
    p, x = torch.nn.Parameter(torch.randn(SIZE)), torch.randn(SIZE)
    run((), [x, p, p])
    with torch.no_grad():
        p.mul_(2)
    torch.testing.assert_close(run((), [x, p, p])[0], (x + p + p).detach())


def test_dead_model_frees_its_derived_weights(run: Executable) -> None:
    model, x = Model(), torch.randn(SIZE)
    run((), model.inputs(x))
    assert run.counters["weight_sets"] == 1
    del model
    gc.collect()
    assert run.counters["weight_sets"] == 0


def test_parameter_of_many_dimensions() -> None:
    program = weighted_program(1, 64)
    tensor = replace(
        program.inputs[1].tensor, sizes=(as_expr(2),) * 6, strides=tuple(as_expr(2**k) for k in range(5, -1, -1))
    )
    run = build(replace(program, inputs=(program.inputs[0], Input(tensor, "p0"))), [sum_text(2)])
    p, x = torch.nn.Parameter(torch.randn((2,) * 6)), torch.randn(64)
    run((), [x, p])
    with torch.no_grad():
        p.mul_(2)
    torch.testing.assert_close(run((), [x, p])[0], x + p.detach().flatten())


def test_parameter_that_nothing_is_derived_from_may_be_written_and_moved() -> None:
    program = weighted_program(2, SIZE)
    program = replace(
        program,
        derived=program.derived[:1],
        calls=(replace(program.calls[0], pointers=(at("input"), at("derived", 0), at("input", 2), at("output"))),),
    )
    run = build(program, [sum_text(3)])
    x, source, buffer = torch.randn(SIZE), torch.nn.Parameter(torch.randn(SIZE)), torch.randn(SIZE)
    for step in range(5):
        torch.testing.assert_close(run((), [x, source, buffer])[0], (x + source + buffer).detach())
        buffer.add_(1)
        if step == 2:
            buffer = torch.randn(SIZE)
        if step == 3:
            buffer.data = torch.randn(SIZE)
    assert run.counters["derivations"] == 1


def test_prepared_source_is_computed_by_its_own_program() -> None:
    size = as_expr(SIZE)
    prepare = replace(
        weighted_program(2, SIZE),
        inputs=(Input(vector(size), "p1"), Input(vector(size), "p0")),
        derived=(),
        calls=(Call(0, (at("input", 0), at("input", 1), at("output")), (size,)),),
        kernels=(sum_spec(2),),
    )
    program = replace(
        weighted_program(2, SIZE),
        derived=(Derived("contiguous", ("prepared", 0)),),
        kernels=(sum_spec(2),),
        calls=(Call(0, (at("input", 0), at("derived", 0), at("output")), (size,)),),
        outputs=(Output(vector(size)),),
        prepare=prepare,
    )
    text = sum_text(2)
    run = build(program, [text], prepare=build(prepare, [text]))
    model, x = Model(), torch.randn(SIZE)
    torch.testing.assert_close(run((), model.inputs(x))[0], (x + model.a + model.b).detach())
    _step(model)
    torch.testing.assert_close(run((), model.inputs(x))[0], (x + model.a + model.b).detach())


def test_parameters_are_looked_at_once_for_all_that_is_prepared_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight for itself would take a second for a network of fifty convolutions."""
    size = as_expr(SIZE)
    pair = Call(0, (at("input", 0), at("input", 1), at("output", 0)), (size,))
    prepare = replace(
        weighted_program(2, SIZE),
        inputs=(Input(vector(size), "p0"), Input(vector(size), "p1")),
        derived=(),
        calls=(pair, replace(pair, pointers=(at("input", 0), at("input", 0), at("output", 1)))),
        kernels=(sum_spec(2),),
        outputs=(Output(vector(size)),) * 2,
    )
    program = replace(
        weighted_program(2, SIZE),
        derived=(Derived("contiguous", ("prepared", 0)), Derived("contiguous", ("prepared", 1))),
        prepare=prepare,
    )
    looked_at: list[torch.Tensor] = []

    def sample(tensor: torch.Tensor) -> list[tuple[int, int, int]]:
        looked_at.append(tensor)
        return content_sample(tensor)

    monkeypatch.setattr(shared_weights, "content_sample", sample)
    run = build(program, [sum_text(3)], prepare=build(prepare, [sum_text(2)]))
    model, x = Model(), torch.randn(SIZE)
    torch.testing.assert_close(run((), model.inputs(x))[0], (x + 3 * model.a + model.b).detach())
    assert len(looked_at) == 2


def test_no_function_is_called_for_each_unchanged_parameter() -> None:
    """They are compared in one native call."""

    def work(count: int) -> int:
        run = build(weighted_program(count, 1), [sum_text(count + 1)])
        inputs = [torch.zeros(1), *(torch.nn.Parameter(torch.randn(1)) for _ in range(count))]
        run((), inputs)
        weights = run.weights
        assert weights is not None
        return calls(lambda: weights.current(inputs))

    work(2)
    assert work(300) == work(2)
