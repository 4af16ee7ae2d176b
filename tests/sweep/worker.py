"""The sweep's worker process: for ``{"op", "first"}`` a verdict for each sample from ``first`` on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import isolated

from sweep import check


def main(backend: str, limit: int, dtype: str) -> None:
    def answer(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        (op,) = check.ops([request["op"]], check.DTYPES[dtype])
        for sample in check.samples(op, limit, check.DTYPES[dtype])[request["first"] :]:
            yield check.check(op, sample, backend).to_json()

    isolated.serve(answer)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
