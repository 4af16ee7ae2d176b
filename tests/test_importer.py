"""The importer's text: contract of the border, places, mutations, symbols, and reasons for what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from counting import calls
from importer_harness import Capture, boxed_compiler, compile_and_run
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_function
from torch.fx.experimental.proxy_tensor import make_fx
from torch_mlir import ir

from effc.compiler.capture.decompositions import decompositions
from effc.compiler.capture.importer import import_region, supported
from effc.compiler.ir.dialect import new_context, verify
from effc.compiler.ir.errors import UnsupportedError


def refusals(function: Callable[..., object], *args: Tensor) -> dict[str, str]:
    """Target -> reason, for each node of the traced function that the importer refuses."""
    gm = make_fx(torch.func.functionalize(function), decomposition_table=decompositions(), tracing_mode="fake")(*args)
    calls = [n for n in gm.graph.nodes if n.op == "call_function"]
    return {str(n.target): r for n in calls if (r := supported(n)) is not None}


def test_border_names_symbols_sizes_strides_and_parameters() -> None:
    x = torch.randn(4, 7)
    torch._dynamo.mark_dynamic(x, 1)
    _, capture = compile_and_run(lambda x: (x.t() @ torch.ones(4, 5)).relu(), [x], dynamic=None)
    (region,) = capture.regions
    (symbol,) = region.symbols
    head = region.text.splitlines()[1]
    assert f'%{symbol}: index {{effc.symbol = "{symbol}"}}' in head
    assert f'effc.sizes = ["4", "{symbol}"], effc.strides = ["{symbol}", "1"]' in head
    assert region.symbol_sources[0].node.name in ("arg0_1", "arg1_1")
    assert region.op_counts["aten.mm.default"] == 1


def test_parameters_carry_their_names() -> None:
    gm = make_fx(lambda x, w: x + w, tracing_mode="fake")(torch.randn(3), torch.randn(3))
    x, w, add, out = gm.graph.nodes
    region = import_region([add], [x, w], [add], params={w: "layer.weight"}, mutations={}, name="r")
    assert region.text.count('effc.param = "layer.weight"') == 1
    assert region.inputs == (x, w)
    assert out.op == "output"


def test_every_operation_carries_the_users_line() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.tanh(x)

    _, capture = compile_and_run(model, [torch.randn(3)])
    assert 'loc("test_importer.py":' in capture.regions[0].text
    line = model.__code__.co_firstlineno + 1
    assert f'loc("test_importer.py":{line}:0)' in capture.regions[0].text


def test_a_buffer_update_becomes_a_mutating_result() -> None:
    class Counter(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(x)
            return x * 2

    model, x = Counter().eval(), torch.randn(3)
    y, capture = compile_and_run(model, [x])
    torch.testing.assert_close(model.count, x)
    torch.testing.assert_close(y, x * 2)
    assert "effc.mutates = " in capture.regions[0].text


def test_text_verifies_with_the_dialects_rules() -> None:
    def model(x: Tensor, i: Tensor) -> Tensor:
        return x.cumsum(0).index_add(0, i, x).argmax(1)

    _, capture = compile_and_run(model, [torch.randn(4, 5), torch.tensor([1, 1, 0, 3])])
    with new_context():
        module = ir.Module.parse(capture.regions[0].text)
        assert module.operation.verify()
        assert verify(module) == []


@pytest.mark.parametrize(
    ("function", "args", "target", "words"),
    [
        (lambda x: torch.sort(x)[0], (torch.randn(4),), "aten.sort.default", "no lowering for aten.sort.default"),
        (lambda x: x + 1j, (torch.randn(4),), "aten.add.Tensor", "dtype complex64"),
        (
            lambda x: torch.as_strided(x[1:], (2, 2), (2, 1)),
            (torch.randn(4),),
            "aten.as_strided.default",
            "as_strided beyond the tensor's own elements",
        ),
        (
            lambda x: torch.ops.aten.index_put(x, [x > 0], torch.randn(2)),
            (torch.ones(2),),
            "aten.index_put.default",
            "depends on the data",
        ),
        (lambda x: x.to(torch.uint16) + 1, (torch.ones(2),), "prims.convert_element_type.default", "dtype uint16"),
    ],
)
def test_refusals_say_why(function: Callable[..., object], args: Tensor, target: str, words: str) -> None:
    found = refusals(function, *args)
    assert words in found[target]


def test_import_of_a_refused_node_names_op_and_place() -> None:
    gm = make_fx(lambda x: torch.sort(x)[0], tracing_mode="fake")(torch.randn(4))
    x, *calls, _ = gm.graph.nodes
    with pytest.raises(UnsupportedError, match=r"aten\.sort\.default at .* \(sort\): effc has no lowering"):
        import_region(calls, [x], [calls[-1]], params={}, mutations={}, name="r")


def test_the_work_of_an_import_grows_with_the_number_of_nodes() -> None:
    """And not with its square."""

    def work(length: int) -> int:
        def chain(x: Tensor) -> Tensor:
            for _ in range(length):
                x = torch.tanh(x + 1)
            return x

        gm = make_fx(chain, tracing_mode="fake")(torch.randn(8, 8))
        x, *nodes, _ = gm.graph.nodes
        assert len(nodes) == 2 * length
        return calls(lambda: import_region(nodes, [x], [nodes[-1]], params={}, mutations={}, name="r"))

    work(1)  # what is imported and cached once
    assert work(200) < 2.2 * work(100)


def test_training_graphs_import_forward_and_backward() -> None:
    layer = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7))
    x = torch.randn(3, 5)
    names = list(dict(layer.named_parameters()))

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return out.square().sum()

    reference = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    mine = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    loss(x, *reference).backward()
    capture = Capture()
    compiler = boxed_compiler(capture)
    aot_function(loss, fw_compiler=compiler, bw_compiler=compiler, decompositions=decompositions())(x, *mine).backward()
    assert len(capture.regions) == 2
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
