"""The process behind ``pool.Worker``: reads ``{"op", "first"}`` lines, writes a verdict for each sample, then
``{"done": true}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweep import check


def main(backend: str, limit: int) -> None:
    """Answer until stdin closes. What the checked code prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        (op,) = check.ops([request["op"]])
        for sample in check.samples(op, limit)[request["first"] :]:
            print(json.dumps(check.check(op, sample, backend).to_json()), file=answers, flush=True)
        print(json.dumps({"done": True}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
