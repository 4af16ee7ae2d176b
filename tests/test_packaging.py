"""The package as users get it: what the wheel holds, what an import costs, what the entry points name."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"effc": "effc", "compiler": "effc.compiler", "passes": "effc.passes", "runtime": "effc.runtime",
           "costmodel": "effc.costmodel"}  # fmt: skip
WHEEL_PYTHON = ROOT / "build" / "wheel" / "bin" / "python"


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str, executable: str | Path = sys.executable, cwd: Path | None = None) -> str:
    """Run ``code`` in a new process away from the clone; its output."""
    done = subprocess.run([executable, "-P", "-c", code], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_package_of_the_tree_is_listed() -> None:
    found = [
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    ]
    assert sorted(found) == sorted(pyproject()["tool"]["setuptools"]["packages"])


def test_every_folder_with_modules_is_a_package() -> None:
    """A folder without ``__init__.py`` works editable and is missing from the wheel."""
    folders = {module.parent for top in FOLDERS for module in (ROOT / top).rglob("*.py")}
    assert [str(f) for f in folders if not (f / "__init__.py").exists()] == []


def test_every_data_file_ships() -> None:
    """What is not Python beside our modules is package data, and listed."""
    listed = pyproject()["tool"]["setuptools"]["package-data"]
    missing = [
        str(path)
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
        if not any(path.match(pattern) for pattern in listed.get(package, []))
    ]
    assert missing == []


def test_backend_is_found_without_an_import() -> None:
    import torch

    assert "effc" in torch.compiler.list_backends()
    (backend,) = entry_points(group="torch_dynamo_backends", name="effc")
    assert callable(backend.load())


def test_import_is_light(tmp_path: Path) -> None:
    loaded = python("import sys, effc; print(*{m.split('.')[0] for m in sys.modules})", cwd=tmp_path).split()
    assert "effc" in loaded
    assert "torch_mlir" not in loaded


def test_the_wheel_compiles_a_model(tmp_path: Path) -> None:
    """In an environment where effc is installed from the wheel, and from nothing else."""
    if not WHEEL_PYTHON.exists():
        pytest.skip("no wheel is built; `make test` builds one")
    code = """
import torch
import effc.compiler
assert effc.compiler.__file__.startswith({prefix!r}), effc.compiler.__file__
model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU())
x = torch.randn(3, 7)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(model, backend="effc")(x), model(x))
"""
    python(code.format(prefix=str(WHEEL_PYTHON.parent.parent)), executable=WHEEL_PYTHON, cwd=tmp_path)


@pytest.mark.parametrize("script", ["effc", "effc-opt"])
def test_scripts_answer_help(script: str) -> None:
    path = Path(sys.executable).parent / script
    done = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"usage: {script}" in done.stdout


def test_version_is_the_projects() -> None:
    path = Path(sys.executable).parent / "effc"
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == f"effc {version('effc')}" == f"effc {pyproject()['project']['version']}"
