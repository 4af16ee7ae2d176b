"""Passes as text: what ``effc-opt -p`` takes, what it says of a mistake, and what runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from torch_mlir import ir

from effc.compiler import opt
from effc.compiler.ir.errors import EffcError, LoweringError, OptionError
from effc.compiler.ir.instruments import Dump, Reproducer, Timing
from effc.compiler.ir.pass_text import format_pipeline, parse_pipeline
from effc.compiler.ir.passes import Pass, PassManager, Upstream, register
from effc.compiler.pipeline.lower import lower

LIT = Path(__file__).resolve().parent.parent / "lit"


@dataclass(frozen=True)
class Example(Pass):
    """Has an option of every kind."""

    name: ClassVar[str] = "example"
    rank: int = 3
    tiles: tuple[int, ...] = ()
    bound: float | None = None
    fast: bool = False
    target: Literal["cpu", "cuda"] = "cpu"
    label: str = ""

    def apply(self, module: ir.Module) -> None:
        module.operation.attributes["test.rank"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), self.rank)


@dataclass(frozen=True)
class Required(Pass):
    """Has an option without a default."""

    name: ClassVar[str] = "required"
    rank: int

    def apply(self, module: ir.Module) -> None:
        raise EffcError("it would not")


@dataclass(frozen=True)
class Breaks(Pass):
    """Leaves a function whose type is not that of what it returns."""

    name: ClassVar[str] = "breaks"

    def apply(self, module: ir.Module) -> None:
        function = module.body.operations[0]
        function.attributes["function_type"] = ir.TypeAttr.get(ir.Type.parse("(i32) -> i64"))


KNOWN: dict[str, type[Pass]] = {c.name: c for c in (Example, Required, Breaks)}
TEXT = """
func.func @f(%a: i32) -> i32 {
  %0 = arith.addi %a, %a : i32 loc("model.py":12:3)
  return %0 : i32
}
"""


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", ()),
        ("example", (Example(),)),
        ("example{}", (Example(),)),
        ("example{rank=4,fast=true}", (Example(rank=4, fast=True),)),
        (" example{ tiles=[6, 64]  bound=1e-3 } , example", (Example(tiles=(6, 64), bound=1e-3), Example())),
        ("example{bound=none,target=cuda,label=a-b}", (Example(target="cuda", label="a-b"),)),
        ("mlir:func.func(canonicalize,cse),example", (Upstream("func.func(canonicalize,cse)"), Example())),
        (
            "mlir:canonicalize{max-iterations=2 top-down=false}",
            (Upstream("canonicalize{max-iterations=2 top-down=false}"),),
        ),
    ],
)
def test_text_and_passes_say_the_same(text: str, steps: tuple[Pass, ...]) -> None:
    assert parse_pipeline(text, KNOWN) == steps
    assert parse_pipeline(format_pipeline(steps), KNOWN) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "exampel",
            "no pass is named 'exampel'; did you mean 'example'? (known: breaks, example, required); "
            "a pass of MLIR's own is mlir:NAME",
        ),
        ("zzz", "no pass is named 'zzz'; (known: breaks, example, required); a pass of MLIR's own is mlir:NAME"),
        ("required{ranks=1}", "pass 'required' has no option 'ranks'; did you mean 'rank'? (known: rank)"),
        ("example{rank=two}", "pass 'example': rank=two is not a whole number"),
        ("example{rank=1,rank=2}", "pass 'example': option 'rank' stands twice"),
        ("example{rank}", "pass 'example': option 'rank' needs a value: rank=…"),
        ("example{fast=yes}", "pass 'example': fast=yes is not true or false"),
        ("example{target=tpu}", "pass 'example': target=tpu is not one of cpu, cuda"),
        ("example{tiles=6}", "pass 'example': tiles=6 is not a list [a,b,…], each a whole number"),
        ("example{bound=x}", "pass 'example': bound=x is not a number or none"),
        ("required", "pass 'required' needs a value for: rank"),
        ("example{rank=1", "'{' is never closed in 'example{rank=1'"),
        ("example}", "'}' closes nothing in 'example}'"),
        ("two words", "'two words' is not a pass; write NAME, NAME{option=value,…} or mlir:NAME"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_pipeline(text, KNOWN)
    assert str(caught.value) == message


def test_two_passes_of_one_name_are_refused() -> None:
    @dataclass(frozen=True)
    class First(Example):
        name: ClassVar[str] = "test-same-name"

    @dataclass(frozen=True)
    class Second(Example):
        name: ClassVar[str] = "test-same-name"

    register(First)
    register(First)  # a module that is imported again is no conflict
    with pytest.raises(EffcError, match="two passes are named 'test-same-name'"):
        register(Second)


def test_passes_run_in_order_and_instruments_see_each(tmp_path: Path) -> None:
    timing = Timing()
    with ir.Context():
        module = ir.Module.parse(TEXT)
        PassManager((Example(rank=7), Upstream("cse")), (timing, Dump(tmp_path / "dump"))).run(module)
        assert module.operation.attributes["test.rank"].value == 7
    assert list(timing.seconds) == ["example", "mlir"]
    written = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert written == ["00-input.mlir", "01-example.mlir", "02-mlir.mlir"]
    assert 'loc("model.py":12:3)' in (tmp_path / "dump" / "02-mlir.mlir").read_text()


def test_a_broken_module_is_laid_at_the_door_of_its_pass_and_reproduced(tmp_path: Path) -> None:
    path = tmp_path / "reproducer.mlir"
    with ir.Context():
        module = ir.Module.parse(TEXT)
        with pytest.raises(LoweringError, match="pass 'breaks' left a module that is not valid"):
            PassManager((Example(), Breaks(), Upstream("cse")), (Reproducer(path),)).run(module)
    head, *rest = path.read_text().splitlines()
    assert head == "// RUN: effc-opt %s -p 'breaks,mlir:cse'"
    with ir.Context():
        again = ir.Module.parse("\n".join(rest))
        assert "test.rank" in again.operation.attributes  # the state before the pass that failed
        with pytest.raises(LoweringError, match="pass 'breaks'"):
            PassManager(parse_pipeline("breaks,mlir:cse", KNOWN)).run(again)


def test_what_a_pass_raises_names_the_pass() -> None:
    with ir.Context():
        module = ir.Module.parse(TEXT)
        with pytest.raises(EffcError, match="it would not") as caught:
            PassManager((Example(), Required(1))).run(module)
    assert caught.value.__notes__ == ["in pass 'required' (number 2 of 2)"]


def test_an_unknown_upstream_option_is_an_option_error() -> None:
    with (
        ir.Context(),
        pytest.raises(OptionError, match=r"'mlir:cse\{depth=1\}' is not a pass of MLIR: .*no such option depth"),
    ):
        Upstream("cse{depth=1}").parse()


def test_a_dump_has_every_stage_and_a_reproducer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFC_DUMP", str(tmp_path))
    lower((LIT / "fusion" / "elementwise.mlir").read_text(), {})
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["00-input.mlir", "01-mlir.mlir", "program.txt"]
    assert "arith.addf" in (folder / "program.txt").read_text()


def test_a_failure_is_reproduced_by_effc_opt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "func.func @main(%a: tensor<3xf32>) -> tensor<3xf32> {\n"
        '  %0 = "effc.nonsense"(%a) : (tensor<3xf32>) -> tensor<3xf32> loc("model.py":3:0)\n'
        "  return %0 : tensor<3xf32>\n}"
    )
    monkeypatch.setenv("EFFC_DUMP", str(tmp_path))
    with pytest.raises(LoweringError) as caught:
        lower(text, {})
    monkeypatch.delenv("EFFC_DUMP")
    (path,) = tmp_path.glob("*/reproducer.mlir")
    head = path.read_text().splitlines()[0]
    assert head.startswith("// RUN: effc-opt %s ")
    assert opt.main([str(path), *head.removeprefix("// RUN: effc-opt %s ").split()]) == 1
    assert str(caught.value).splitlines()[0] in capsys.readouterr().err
