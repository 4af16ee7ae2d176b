"""Regions: which kernels could be one, and which not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random
from typing import Any

import pytest
import torch
from region_cases import Equations, flow_of
from torch import Tensor, nn
from torch.nn import functional as F

from effc.compiler.pipeline.dataflow import Dataflow
from effc.compiler.pipeline.placement import Base
from effc.compiler.pipeline.regions import Region, find_regions, make_region


def tree(region: Region) -> Any:
    """Nested lists of kernels; a region with a skip is a list that begins with ``+``."""
    if not region.parts:
        return region.kernels[0] if len(region.kernels) == 1 else list(region.kernels)
    return [*(["+"] if region.skip else []), *map(tree, region.parts)]


def trees(flow: Dataflow) -> list[Any]:
    return [tree(region) for region in find_regions(flow)]


# -- what is found --------------------------------------------------------------------------------------------------
def test_a_chain_is_one_region() -> None:
    given = Equations("a = sum(x, w1)", "b = sum(a, w2)", "y = sum(b, w3)")
    (region,) = find_regions(given.flow)
    assert region.kernels == (0, 1, 2)
    assert given.names(region.inputs) == "x"
    assert given.names([region.exit]) == "y"
    assert given.names(region.between) == "a b"
    assert not region.skip
    assert tree(region) == [0, 1, 2]


def test_a_residual_block_is_a_part_of_what_is_around_it() -> None:
    given = Equations("a = sum(x)", "b = sum(a)", "c = sum(b)", "d = sum(c) + a", "y = sum(d)")
    (region,) = find_regions(given.flow)
    assert tree(region) == [0, ["+", 1, 2, 3], 4]
    block = region.parts[1]
    assert block.entry == given.bases["a"]
    assert given.names(block.inputs) == "a"
    assert given.names([block.exit]) == "d"
    assert given.names(block.between) == "b c"
    assert [r.kernels for r in region.walk()][:3] == [(0, 1, 2, 3, 4), (0,), (1, 2, 3)]


def test_residual_blocks_in_a_row_and_one_inside_another() -> None:
    rows = Equations("a = sum(x)", "b = sum(a) + x", "c = sum(b)", "y = sum(c) + b")
    assert trees(rows.flow) == [[["+", 0, 1], ["+", 2, 3]]]
    nested = Equations("a = sum(x)", "b = sum(a)", "c = sum(b) + a", "y = sum(c) + x")
    assert trees(nested.flow) == [["+", 0, ["+", 1, 2], 3]]


def test_squeeze_and_excitation() -> None:
    given = Equations(
        "a = sum(x)", "b = sum(a)", "p = sum(b)", "q = sum(p)", "e = sum(q)", "y = sum(b, e) + x"
    )  # fmt: skip
    assert trees(given.flow) == [["+", 0, 1, [2, 3, 4, 5]]]


def test_branches_that_are_joined() -> None:
    """By a kernel, and by lying in one buffer, which is a concatenation."""
    added = Equations("a = sum(x)", "b = sum(a)", "c = sum(a)", "d = map(b) + c", "y = sum(d)")
    assert trees(added.flow)[0][0] == 0
    assert [r.kernels for r in find_regions(added.flow)[0].walk()][2] == (1, 2, 3)
    laid = Equations("a = sum(x)", "c = sum(a)", "b = sum(a)", "c = sum(b)", "y = sum(c)")
    (region,) = find_regions(laid.flow)
    assert region.kernels == (0, 1, 2, 3, 4)
    assert (1, 2, 3) in [r.kernels for r in region.walk()]


def test_borders_belong_to_what_they_are_around() -> None:
    given = Equations(
        "a = sum(x)", "a = fill()", "b = fill()", "b = sum(a)", "b = fill()", "c = sum(b) + a", "y = sum(c)"
    )
    (region,) = find_regions(given.flow)
    block = region.parts[1]
    assert [part.kernels for part in region.parts] == [(0, 1), (2, 3, 4, 5), (6,)]
    assert block.skip
    assert [part.kernels for part in block.parts] == [(2, 3, 4), (5,)]
    assert given.names(block.between) == "b"


def test_a_residual_block_whose_entry_is_read_elsewhere() -> None:
    """Features that a backbone returns, a skip over many blocks."""
    returned = Equations("y1 = sum(x)", "b = sum(y1)", "y2 = sum(b) + y1")
    assert trees(returned.flow) == [["+", 1, 2]]
    longer = Equations("a = sum(x)", "b = sum(a)", "c = sum(b) + a", "d = sum(c)", "y = sum(d, a)")
    (region,) = find_regions(longer.flow)
    assert tree(region) == [0, [["+", 1, 2], 3, 4]]


def test_the_first_kernel_of_a_run_may_add_what_others_wrote() -> None:
    """The projection of attention, and the MLP behind it."""
    given = Equations(
        "q = sum(x)", "a = attention(q)", "b = sum(a) + x", "n = sum(b)", "h = sum(n)", "y = sum(h) + b"
    )  # fmt: skip
    (region,) = find_regions(given.flow)
    assert tree(region) == [2, ["+", 3, 4, 5]]
    assert given.names(region.inputs) == "a x"
    assert not region.skip


def test_another_input_does_not_part_a_block() -> None:
    given = Equations("t = attention(x1)", "a = sum(x)", "b = sum(a) + t", "y = sum(b) + x")
    assert trees(given.flow) == [["+", 1, 2, 3]]


# -- what is not ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("equations", "expected"),
    [
        (("a = sum(x)", "b = sum(a)", "y1 = sum(b)", "y2 = sum(a)"), [[1, 2]]),
        (("y1 = sum(x)", "b = sum(y1)", "y2 = sum(b)"), [[1, 2]]),
        (("a = sum(x)", "b, y1 = sum(a)", "y2 = sum(b)"), []),
        (("a = sum(x)", "b = dynamic(a)", "y = sum(b)"), []),
        (("a = sum(x)", "b = attention(a)", "c = sum(b)", "y = sum(c)"), [[2, 3]]),
        (("a = sum(x)", "a = map(a)", "y = sum(a)"), []),
    ],
    ids=["a second use", "a returned intermediate", "a side output", "dynamic sizes", "attention", "in place"],
)
def test_what_parts_a_run(equations: Sequence[str], expected: list[Any]) -> None:
    assert trees(Equations(*equations).flow) == expected


def test_a_side_output_in_a_block_leaves_what_is_behind_it() -> None:
    given = Equations("a = sum(x)", "y1 = sum(a)", "c = sum(y1)", "y2 = sum(c) + x")
    assert trees(given.flow) == [[0, 1], [2, 3]]
    assert not any(region.skip for region in find_regions(given.flow))


def test_an_input_that_is_overwritten_in_the_meantime() -> None:
    given = Equations("a = sum(x)", "x = sum(w)", "y = sum(a)")
    assert trees(given.flow) == []
    assert trees(Equations("a = sum(x)", "y = sum(a)", "x = sum(w)").flow) == [[0, 1]]


def test_a_block_that_overwrites_its_entry() -> None:
    """A tile of it would be read after its neighbour was written."""
    assert trees(Equations("a = sum(x)", "x = sum(a)").flow) == []


def test_a_buffer_that_grows_is_read_in_between() -> None:
    given = Equations("a = sum(x)", "b = sum(a)", "a = sum(b)", "y = sum(a)")
    assert trees(given.flow) == []


def test_adding_what_is_computed_element_by_element_is_no_skip() -> None:
    assert not find_regions(Equations("a = sum(x)", "y = map(a) + a").flow)[0].skip
    flow = Equations("y = map(x) + x").flow
    alone = make_region(flow, [0])
    assert alone is not None
    assert not alone.skip
    summed = make_region(Equations("y = sum(x) + x").flow, [0])
    assert summed is not None
    assert summed.skip


def test_a_kernel_that_stores_two_things() -> None:
    """Alone it is no region, as others would read both."""
    given = Equations("a = sum(x)", "b, c = sum(a)", "d = sum(b)", "e = sum(d, c)", "y = sum(e)")
    (region,) = find_regions(given.flow)
    assert [part.kernels for part in region.parts] == [(0,), (1, 2, 3), (4,)]
    assert [part.kernels for part in region.parts[1].parts] == [(2, 3)]


def test_any_kernels_may_be_asked_about() -> None:
    given = Equations("a = sum(x)", "b = sum(a)", "c = sum(b)", "y = sum(c) + a")
    assert make_region(given.flow, [1, 2]) is not None
    last = make_region(given.flow, [2, 3])
    assert last is not None
    assert given.names(last.inputs) == "b a"
    assert make_region(given.flow, [0, 1]) is None, "what the first stores is added at the end"
    assert make_region(given.flow, [0, 2]) is None


def _random_equations(rng: Random) -> list[str]:
    """Kernels that read what earlier ones wrote; buffers are filled part by part, used again, and updated in place."""
    known, found = ["x1", "x2"], list[str]()
    for _ in range(rng.randint(3, 14)):
        function = rng.choice(["sum"] * 6 + ["map", "map", "fill", "attention"])
        read = [] if function == "fill" else rng.choices(known, k=rng.randint(1, 2), weights=range(1, len(known) + 1))
        added = rng.choice(known) if function == "sum" and rng.random() < 0.4 else ""
        pool = known if rng.random() < 0.15 else [f"b{len(found)}", f"b{len(found)}", f"y{len(found)}"]
        result = rng.choice(pool)
        also = f", c{len(found)}" if rng.random() < 0.1 else ""
        found.append(f"{result}{also} = {function}({', '.join(read)})" + (f" + {added}" if added else ""))
        known += [name for name in (result, also.strip(", ")) if name and name not in known]
    return found


def _contents(flow: Dataflow, order: Sequence[int]) -> tuple[dict[Base, Any], dict[int, Any]]:
    """What bases hold after the kernels ran in ``order``, and what each kernel read; a write adds to what is there."""
    held: dict[Base, Any] = {}
    read: dict[int, Any] = {}
    for i in order:
        read[i] = tuple((base, held.get(base)) for base in flow.reads[i])
        for base in flow.writes[i]:
            held[base] = (held.get(base), i, read[i])
    return held, read


@pytest.mark.parametrize("seed", range(20))
def test_regions_of_random_programs_may_run_together(seed: int) -> None:
    """In the place of the last of its kernels, and part by part: nobody, nor what is left at the end, sees a difference."""
    rng, seen = Random(seed), 0
    for _ in range(20):
        equations = _random_equations(rng)
        flow = Equations(*equations).flow
        every = range(len(flow.kernels))
        for region in [r for top in find_regions(flow) for r in top.walk()]:
            inside, last = set(region.kernels), region.kernels[-1]
            seen += len(inside) > 1
            moved = [i for i in every if i < last and i not in inside] + list(region.kernels) + list(every[last + 1 :])
            (held, read), (expected, expected_read) = _contents(flow, moved), _contents(flow, every)
            private = set(region.between)
            assert read == expected_read, (equations, region)
            assert {b: v for b, v in held.items() if b not in private} == {
                b: v for b, v in expected.items() if b not in private
            }, (equations, region)
            assert all(private.isdisjoint((*flow.reads[i], *flow.writes[i])) for i in every if i not in inside)
            assert all(b.kind == "buffer" for b in private)
            for n, i in enumerate(region.kernels):
                assert all(set(flow.reads[i]).isdisjoint(flow.writes[j]) for j in region.kernels[n:]), equations
    assert seen, "the programs have regions"


def test_nothing_to_find() -> None:
    assert find_regions(Dataflow([], ())) == []
    assert trees(Equations("y = sum(x)").flow) == []


# -- models ---------------------------------------------------------------------------------------------------------
def skips(flow: Dataflow) -> list[Region]:
    """The smallest regions with a skip."""
    found = [r for region in find_regions(flow) for r in region.walk() if r.skip]
    return [r for r in found if not any(other is not r and other in set(r.walk()) for other in found)]


def conv(i: int, o: int, k: int = 1, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, bias=False, **options), nn.BatchNorm2d(o))


class Excitation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Norm(nn.LayerNorm):
    """Over channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.after = nn.Sequential(*layers), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.layers(x) + x)
        return y


class Inception(nn.Module):
    """Depthwise branches of some channels, the others as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 8, (1, 11), padding=(0, 5), groups=8)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = x.split([8, 8, 16], 1)
        return torch.cat([self.square(a), self.wide(b), c], 1)


BLOCKS: dict[str, nn.Module] = {
    "basic": Residual(conv(32, 32, 3), nn.ReLU(), conv(32, 32, 3), after=nn.ReLU()),
    "bottleneck": Residual(conv(32, 8), nn.ReLU(), conv(8, 8, 3), nn.ReLU(), conv(8, 32), after=nn.ReLU()),
    "inverted": Residual(conv(32, 96), nn.ReLU6(), conv(96, 96, 3, groups=96), nn.ReLU6(), conv(96, 32)),
    "mbconv": Residual(conv(32, 96), nn.SiLU(), conv(96, 96, 5, groups=96), nn.SiLU(), Excitation(96), conv(96, 32)),
    "convnext": Residual(nn.Conv2d(32, 32, 7, padding=3, groups=32), Norm(32), conv(32, 128), nn.GELU(), conv(128, 32)),
    "convfirst": Residual(conv(32, 32, 3, groups=4), conv(32, 96), nn.ReLU(), conv(96, 32)),
    "inceptionnext": Residual(Inception(), nn.BatchNorm2d(32), conv(32, 96), nn.GELU(), conv(96, 32)),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_convolutional_networks(kind: str) -> None:
    model = nn.Sequential(conv(3, 32, 3, stride=2), nn.ReLU(), BLOCKS[kind], nn.Conv2d(32, 16, 1)).eval()
    flow = flow_of(model, torch.randn(1, 3, 28, 28))
    (block,) = skips(flow)
    assert len(block.inputs) == 1, "everything but the entry is made inside"
    (whole,) = find_regions(flow)
    assert len(whole.kernels) == len(flow.kernels)
    first, last = block.kernels[0], block.kernels[-1]
    assert block.kernels == tuple(range(first, last + 1))
    assert last < len(flow.kernels) - 1, "the last convolution is not in the block"
    assert first > 0, "nor the first one"


class Mlp(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(48), nn.Linear(48, 192), nn.Linear(96 if gated else 192, 48)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.norm(x))
        y: Tensor = x + self.down(F.glu(h) if self.gated else F.gelu(h))
        return y


@pytest.mark.parametrize("gated", [False, True])
def test_transformer_layers(gated: bool) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv, self.out, self.mlp = (
                nn.LayerNorm(48),
                nn.Linear(48, 144),
                nn.Linear(48, 48),
                Mlp(gated),
            )

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
            x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            y: Tensor = self.mlp(x)
            return y

    flow = flow_of(Layer().eval(), torch.randn(2, 17, 48))
    (block,) = skips(flow)
    behind = next(r for r in find_regions(flow) if r.exit == block.exit)
    assert behind.kernels == (block.kernels[0] - 1, *block.kernels), "the projection of attention is there too"


def test_dynamic_sizes() -> None:
    model = nn.Sequential(BLOCKS["inverted"]).eval()
    assert find_regions(flow_of(model, torch.randn(2, 32, 28, 28), dynamic=True)) == []


def test_a_deep_model_is_no_effort() -> None:
    """Each kernel is looked at a few times, however long the program is."""
    equations, name = list[str](), "x"
    for i in range(300):
        equations += [f"a{i} = sum({name})", f"b{i} = sum(a{i})", f"c{i} = sum(b{i}) + {name}"]
        name = f"c{i}"
    given = Equations(*equations, f"y = sum({name})")
    calls = 0
    shared = given.flow.shared

    def counted(members: Sequence[int], shown: Collection[Base] = ()) -> Any:
        nonlocal calls
        calls += len(members)
        return shared(members, shown)

    given.flow.shared = counted  # type: ignore[method-assign]
    (region,) = find_regions(given.flow)
    assert len(region.parts) == 301
    assert calls < 20 * len(equations)
