"""Features of a program's dataflow, and embeddings of it."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from effc.compiler.ir.expr import const
from effc.compiler.ir.program import Call, Pointer, Program
from effc.compiler.ir.spec import KernelSpec, Operand
from effc.costmodel import embedding, graph

UNARY = KernelSpec("loops", (), (Operand("f32", "read", const(8)), Operand("f32", "write", const(8))), ())
BINARY = KernelSpec("loops", (), (*[Operand("f32", "read", const(8))] * 2, Operand("f32", "write", const(8))), ())
IN_PLACE = KernelSpec("loops", (), (Operand("f32", "readwrite", const(8)),), ())


def program(*calls: tuple[KernelSpec, list[int]]) -> Program:
    """Each call by its kernel and its operands' places in the arena, in bytes; a negative one is the input."""
    kernels = (UNARY, BINARY, IN_PLACE)
    made = []
    for spec, places in calls:
        pointers = tuple(Pointer("input" if p < 0 else "arena", 0, const(max(p, 0))) for p in places)
        made.append(Call(kernels.index(spec), pointers, (), name="f"))
    return Program((), (), (), (), kernels, tuple(made), const(0))


def named(found: list[float]) -> dict[str, float]:
    return dict(zip(graph.COLUMNS, found, strict=True))


DIAMOND = program((UNARY, [-1, 0]), (UNARY, [0, 32]), (UNARY, [0, 64]), (BINARY, [32, 64, 96]))


def test_a_call_follows_those_whose_results_it_reads() -> None:
    assert set(graph.dataflow(DIAMOND, {}).edges) == {(0, 1), (0, 2), (1, 3), (2, 3)}


def test_memory_that_is_used_again_belongs_to_its_last_writer() -> None:
    again = program((UNARY, [-1, 0]), (UNARY, [0, 32]), (UNARY, [32, 0]), (UNARY, [0, 64]))
    assert set(graph.dataflow(again, {}).edges) == {(0, 1), (1, 2), (2, 3)}


def test_parts_of_older_results_stay_where_they_are_not_overwritten() -> None:
    halves = program((UNARY, [-1, 0]), (UNARY, [-1, 16]), (UNARY, [0, 96]))
    assert set(graph.dataflow(halves, {}).edges) == {(0, 2), (1, 2)}


def test_what_is_updated_in_place_is_read_and_written() -> None:
    updated = program((UNARY, [-1, 0]), (IN_PLACE, [0]), (UNARY, [0, 32]))
    assert set(graph.dataflow(updated, {}).edges) == {(0, 1), (1, 2)}


def test_features_of_a_diamond() -> None:
    found = named(graph.row(graph.dataflow(DIAMOND, {}), [1.0, 2.0, 5.0, 2.0]))
    assert (found["depth"], found["width"]) == (3, 2)
    assert found["critical_share"] == pytest.approx(8 / 10)
    assert found["largest_share"] == pytest.approx(0.5)
    assert (found["fan_in_max"], found["fan_out_max"], found["sources"], found["sinks"]) == (2, 2, 1, 1)


def test_no_calls_have_no_features() -> None:
    assert set(graph.row(graph.dataflow(program(), {}), [])) == {0.0}


# -- embeddings -------------------------------------------------------------------------------------------------------
def test_embeddings_do_not_depend_on_names_of_nodes() -> None:
    one = nx.DiGraph([(0, 1), (1, 2), (0, 3)])
    other = nx.relabel_nodes(one, {0: "x", 1: "a", 2: "z", 3: "b"})
    labels = {0: "conv", 1: "relu", 2: "conv", 3: "add"}
    back = {"x": 0, "a": 1, "z": 2, "b": 3}
    first = embedding.nodes(one, [labels[n] for n in one])
    second = embedding.nodes(other, [labels[back[n]] for n in other])
    order = [list(other).index(name) for name in ("x", "a", "z", "b")]
    np.testing.assert_allclose(first[[list(one).index(n) for n in range(4)]], second[order])


def test_alike_graphs_lie_near_each_other() -> None:
    def chain(*labels: str) -> np.ndarray:
        return embedding.whole(nx.path_graph(len(labels), create_using=nx.DiGraph), labels)

    base = chain("conv", "relu", "conv", "relu", "linear")
    alike, unlike = chain("conv", "relu", "conv", "relu", "conv", "relu", "linear"), chain("softmax", "gather", "scan")
    assert np.linalg.norm(base - alike) < np.linalg.norm(base - unlike)


def test_embeddings_of_nothing_and_of_one() -> None:
    assert not embedding.whole(nx.DiGraph(), []).any()
    lonely = nx.DiGraph()
    lonely.add_node(0)
    assert np.isfinite(embedding.nodes(lonely, ["f"])).all()
    with pytest.raises(ValueError, match="2 labels for 1 nodes"):
        embedding.nodes(lonely, ["f", "g"])
