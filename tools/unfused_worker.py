"""A toolchain process that compiles as effc does, but makes no kernel of several: ``python -P tools/unfused_worker.py``.

What `fusion_builds.py` compares with; there is no option for it, as nobody else wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effc.compiler import worker
from effc.compiler.pipeline import assemble
from effc.compiler.pipeline.placed import Kernel


def _as_they_are(kernels: Sequence[Kernel], *_: Any) -> list[Kernel]:
    return list(kernels)


if __name__ == "__main__":
    setattr(assemble, "fuse_blocks", _as_they_are)  # noqa: B010
    worker.main()
