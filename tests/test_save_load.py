"""``effc.save`` and ``effc.load``: the loaded model computes what the model does, and refuses what it was not saved for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import zoo
from exactness import assert_exact
from torch import Tensor, nn
from torch.export import Dim

import effc
from effc.compiler.codegen.cpu import permission
from effc.compiler.ir.errors import ArtifactError, InputError, UnsupportedError
from effc.costmodel import hardware
from effc.runtime import archive
from effc.shipping import loading, saving


class Net(nn.Module):
    """A buffer that is updated, an input that is written, an op that effc leaves to ATen, nested inputs and outputs."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 17)
        self.down = nn.Linear(17, 5)
        self.register_buffer("seen", torch.zeros(6))
        self.mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])

    def forward(self, x: Tensor, scale: float, state: dict[str, Tensor] | None = None) -> dict[str, Any]:
        self.seen.add_(x.sum(0))
        y = self.down(torch.relu(self.up(x))) * scale
        if state is not None:
            state["rows"].mul_(2)
            y = y + state["rows"]
        return {"y": y * self.mask, "values": (torch.linalg.svdvals(y), None, 3), "seen": self.seen}


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 17), nn.GELU(), nn.Linear(17, 5)).eval()


def saved(tmp_path: Path, model: nn.Module, *args: Any, **arguments: Any) -> effc.Loaded:
    effc.save(model, args, tmp_path / "model", **arguments)
    return effc.load(tmp_path / "model")


def test_a_model_with_everything(tmp_path: Path) -> None:
    model, rows = Net().eval(), Dim("rows", max=50)
    shapes = {"x": {0: rows}, "scale": None, "state": {"rows": {0: rows}}}
    fast = saved(
        tmp_path, model, torch.randn(4, 6), 0.5, kwargs={"state": {"rows": torch.randn(4, 5)}}, dynamic_shapes=shapes
    )
    for n in (4, 9, 50, 2):
        x, given = torch.randn(n, 6), torch.randn(n, 5)
        ours, theirs = given.clone(), given.clone()
        with torch.no_grad():
            expected, found = model(x, 0.5, state={"rows": theirs}), fast(x, 0.5, state={"rows": ours})
        torch.testing.assert_close(found["y"], expected["y"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["values"][0], expected["values"][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["seen"], expected["seen"], rtol=1e-5, atol=1e-5)
        assert found["values"][1:] == (None, 3)
        assert torch.equal(ours, theirs), "the input is written as the model writes it"


def test_exact_and_in_any_layout(tmp_path: Path) -> None:
    model = linear()
    fast = saved(tmp_path, model, torch.randn(7, 6))
    with torch.no_grad():
        assert_exact(model, (torch.randn(7, 6),), fast)
        assert_exact(model, (torch.randn(6, 7).t(),), fast)
        assert_exact(model, (torch.randn(7, 12)[:, ::2],), fast)


class Positions(nn.Module):
    """``torch.export`` asserts the dtype of what is converted to the dtype that it has."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return torch.relu(x * 2) + positions.long().to(x.dtype)[:, None]


def test_assertions_of_dtypes_do_not_part_the_graph(tmp_path: Path) -> None:
    x, positions = torch.randn(5, 7), torch.arange(5)
    fast = saved(tmp_path, Positions().eval(), x, positions)
    steps = archive.read(tmp_path / "model" / loading.FILE, loading.KIND).values["steps"]
    assert "aten" not in str(steps)
    assert_exact(Positions(), (x, positions), fast)
    with pytest.raises(InputError, match="int64"):
        fast(x, positions.int())


def test_weights_are_copies(tmp_path: Path) -> None:
    """What happens to the model after saving does not reach the saved one, and running it does not change the file."""
    model, x = linear(), torch.randn(3, 6)
    with torch.no_grad():
        expected = model(x)
        fast = saved(tmp_path, model, x)
        before = (tmp_path / "model" / loading.FILE).read_bytes()
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(fast(x), expected)
    assert (tmp_path / "model" / loading.FILE).read_bytes() == before


def test_several_threads(tmp_path: Path) -> None:
    model = linear()
    fast = saved(tmp_path, model, torch.randn(3, 6))
    wrong = []

    def run(seed: int) -> None:
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
        for _ in range(20):
            if not torch.allclose(fast(x), model(x), rtol=1e-5, atol=1e-6):
                wrong.append(seed)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_new_process_needs_neither_the_source_nor_a_compiler(tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    model = linear()
    effc.save(model, x, tmp_path / "model")
    torch.save((x, model(x).detach()), tmp_path / "pair.pt")
    code = f"""
import sys, torch, effc
x, expected = torch.load({str(tmp_path / "pair.pt")!r})
torch.testing.assert_close(effc.load({str(tmp_path / "model")!r})(x), expected)
print([name for name in ("torch._dynamo", "torch._inductor", "torch_mlir") if name in sys.modules])
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "EFFC_CACHE_DIR": str(tmp_path / "empty")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert not (tmp_path / "empty").exists(), "nothing was looked up or compiled"


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


def test_named_tuples_come_as_dicts(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Pair:
            return Pair(x + 1, x * 2)

    x = torch.randn(3)
    found = saved(tmp_path, Two().eval(), x)(x)
    assert torch.equal(found["first"], x + 1)
    assert torch.equal(found["second"], x * 2)


# -- inputs that do not fit -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda f: f(torch.randn(4, 6)), r"tensor 0 of the inputs has shape \[4, 6\]; the model was saved for \[3, 6\]"),
        (lambda f: f(torch.randn(3, 6).double()), r"is float64 \[3, 6\] on cpu; the model was saved for float32"),
        (lambda f: f(torch.randn(6)), r"is float32 \[6\] on cpu; the model was saved for float32 \[3, 6\]"),
        (lambda f: f(), r"inputs\[0\]: expected 1 in a tuple, got 0"),
        (lambda f: f(torch.randn(3, 6), flag=1), r"inputs\[1\]: expected none by name, got \['flag'\]"),
        (lambda f: f([1, 2]), "leaf 0 of the inputs is list, where a tensor is expected"),
    ],
)  # fmt: skip
def test_inputs_that_the_model_was_not_saved_for(tmp_path: Path, call: Callable[[Any], Any], text: str) -> None:
    fast = saved(tmp_path, linear(), torch.randn(3, 6))
    with pytest.raises(InputError, match=text):
        call(fast)


def test_sizes_out_of_their_range_and_other_constants(tmp_path: Path) -> None:
    rows = Dim("rows", min=2, max=8)
    fast = saved(tmp_path, Net().eval(), torch.randn(4, 6), 0.5, dynamic_shapes={"x": {0: rows}, "scale": None})
    with pytest.raises(InputError, match=r"is 9; the model was saved for 2 to 8"):
        fast(torch.randn(9, 6), 0.5)
    with pytest.raises(InputError, match=r"leaf 1 of the inputs is 0\.7; the model was saved for 0\.5, and only that"):
        fast(torch.randn(4, 6), 0.7)


# -- what cannot be saved ---------------------------------------------------------------------------------------------
def test_refusals(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(UnsupportedError, match=r"because torch\.export does not trace it as a whole"):
        effc.save(Branches().eval(), torch.randn(3), tmp_path / "model")
    with pytest.raises(InputError, match=r"call model\.eval\(\) first"):
        effc.save(nn.Linear(2, 2), torch.randn(3, 2), tmp_path / "model")
    with pytest.raises(effc.OptionError, match="option 'check' compares with ATen"):
        effc.save(linear(), torch.randn(3, 6), tmp_path / "model", options={"check": True})
    with pytest.raises(UnsupportedError, match="effc does not compile 1 op"):
        effc.save(Net().eval(), (torch.randn(3, 6), 1.0), tmp_path / "model", options={"fallback": "error"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(ArtifactError, match="exists and is no saved model: choose another folder"):
        effc.save(linear(), torch.randn(3, 6), tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"], "nothing is left behind"


def test_a_saved_model_is_replaced_as_a_whole(tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    first = saved(tmp_path, linear(), x)
    model = linear()
    second = saved(tmp_path, model, x)
    assert not torch.allclose(first(x), second(x)), "the one loaded before goes on as it was"
    torch.testing.assert_close(second(x), model(x).detach())
    assert [p.name for p in (tmp_path / "model").iterdir()] == [loading.FILE]


# -- artifacts --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("saved") / "model"
    effc.save(linear(), torch.randn(3, 6), folder)
    return (folder / loading.FILE).read_bytes()


@pytest.mark.parametrize("where", [0, 20, 60, 3000, -3000, -70, -1])
def test_any_edited_byte_is_noticed(tmp_path: Path, content: bytes, where: int) -> None:
    data = bytearray(content)
    data[where] ^= 0x10
    (tmp_path / loading.FILE).write_bytes(data)
    with pytest.raises(ArtifactError):
        effc.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, content: bytes, share: float) -> None:
    (tmp_path / loading.FILE).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtifactError):
        effc.load(tmp_path)


def test_another_version_and_an_empty_folder(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        effc.load(tmp_path)
    (tmp_path / loading.FILE).write_bytes(content.replace(b'"kind": "model 1"', b'"kind": "model 9"'))
    with pytest.raises(ArtifactError, match="holds 'model 9', where 'model 1' is expected"):
        effc.load(tmp_path)


def other_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tuple(f for f in hardware.flags() if f != "avx2")
    monkeypatch.setattr(loading, "flags", lambda: kept)


def test_another_cpu_compiles_the_graph_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = linear(), torch.randn(3, 6)
    effc.save(model, x, tmp_path / "model")
    other_cpu(monkeypatch)
    monkeypatch.setattr(loading._Decoder, "_adopted", None)
    with torch.no_grad():
        assert_exact(model, (x,), effc.load(tmp_path / "model"))


def test_another_version_of_effc_compiles_the_graph_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = linear(), torch.randn(3, 6)
    effc.save(model, x, tmp_path / "model")
    monkeypatch.setattr(loading, "version", lambda name: "9.9")
    monkeypatch.setattr(loading._Decoder, "_adopted", None)
    with torch.no_grad():
        assert_exact(model, (x,), effc.load(tmp_path / "model"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match=r"the model was saved by effc .*, and this is effc 9\.9"):
        effc.load(tmp_path / "model")


def test_another_cpu_without_the_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (tmp_path / loading.FILE).write_bytes(content)
    other_cpu(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match="for a CPU with avx2, which this one lacks, and the package torch-mlir"):
        effc.load(tmp_path)


def test_code_for_tile_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by a CPU without them, and where the system keeps them from the process; it is adopted where both have them."""
    tiles = ("amx_bf16", "amx_tile")
    have = tuple(f for f in hardware.flags() if not f.startswith("amx"))
    monkeypatch.setattr(saving, "flags", lambda: (*have, *tiles))
    asked: list[int] = []

    def permit(code: int, argument: int) -> int:
        asked.append(argument)
        return 0

    monkeypatch.setattr(permission, "_arch_prctl", permit)
    permission.tiles_permitted.cache_clear()
    effc.save(linear(), torch.randn(3, 6), tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(loading, "flags", lambda: have)
    with pytest.raises(ArtifactError, match="for a CPU with amx_bf16, amx_tile, which this one lacks"):
        effc.load(tmp_path)
    monkeypatch.setattr(loading, "flags", lambda: (*have, *tiles))
    permission.tiles_permitted.cache_clear()
    asked.clear()
    effc.load(tmp_path)
    assert asked == [18], "the system is asked before the code runs"
    monkeypatch.setattr(permission, "_arch_prctl", lambda code, argument: -1)
    permission.tiles_permitted.cache_clear()
    try:
        with pytest.raises(ArtifactError, match="amx_bf16, amx_tile, which the system keeps from this process"):
            effc.load(tmp_path)
    finally:
        permission.tiles_permitted.cache_clear()


# -- whole models -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in zoo.ENTRIES.items() if not entry.recurrent])
def test_models(tmp_path: Path, name: str) -> None:
    case = zoo.build(name, small=True)
    fast = saved(tmp_path, case.module, *case.inputs(0, 0))
    assert_exact(case.module, case.inputs(1, 0), fast)


# -- effc.refresh -----------------------------------------------------------------------------------------------------
def test_refresh_follows_writes_that_torch_does_not_see() -> None:
    model, x = linear(), torch.randn(3, 6)
    first, last = (layer.weight for layer in model if isinstance(layer, nn.Linear))
    fast = torch.compile(model, backend="effc")
    with torch.no_grad():
        fast(x)
        first.data.view(-1)[1].mul_(3)
        for refreshed in (model, fast):
            effc.refresh(refreshed)
            assert_exact(model, (x,), fast)
            last.data.view(-1)[2].add_(1)
    with pytest.raises(InputError, match="refresh takes the module"):
        effc.refresh(lambda x: x)


def test_a_model_that_was_exported_is_saved_as_it_was_traced(tmp_path: Path) -> None:
    """It has no ``eval()``, and says that it trains; tools for quantization give such models."""
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.ReLU()).eval(), torch.randn(3, 8)
    exported = torch.export.export(model, (x,)).module()
    assert exported.training
    effc.save(exported, x, tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(effc.load(tmp_path / "saved")(x), model(x))
    assert effc.calibrate(exported, [x]).batches
