"""The documents: links lead somewhere, files that they name exist, and the README's first example runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import assert_exact

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
#: Names that stand for a file of the reader's.
EXAMPLES = {"passes/my_rewrite.py", "path/to/file.py", "mine.py"}


def anchors(document: Path) -> set[str]:
    """Those of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = (re.sub(r"[^\w\- ]", "", h.strip().lower()) for h in re.findall(r"^#+ (.*)$", text, re.M))
    return {heading.replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        place, _, anchor = link.partition("#")
        if place.startswith("http"):
            continue
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{document.name}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_files_that_are_named_exist(document: Path) -> None:
    """By their whole path, or by the end of it: ``block/cost.py``."""
    folders = ("effc", "compiler", "passes", "runtime", "costmodel", "tools", "tests")
    there = [f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for name in (
        set(re.findall(r"`(?:\.\./)*([\w./]+\.py)(?::\w+)?[` ]", document.read_text(encoding="utf-8"))) - EXAMPLES
    ):
        assert any(path.endswith(f"/{name}") for path in there), f"{document.name}: {name}"


def test_the_first_example_of_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^## First example\s+```python\n(.*?)^```", text, re.S | re.M)
    assert example is not None
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(example[1], found)
    with torch.no_grad():
        assert_exact(found["model"], (torch.randn(32, 256),), found["fast"])
