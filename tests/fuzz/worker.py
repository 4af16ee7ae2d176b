"""The fuzzer's worker process: for ``{"source", "seed", "dynamic"}`` the outcome."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import isolated

from fuzz import check


def main(backend: str) -> None:
    def answer(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield check.check(request["source"], request["seed"], backend, request["dynamic"], request["mode"]).to_json()

    isolated.serve(answer)


if __name__ == "__main__":
    main(sys.argv[1])
