"""What the tests of ``effc bench`` serve from another process."""

from __future__ import annotations

import os
import time


class Served:
    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def refuse(self) -> None:
        raise ValueError("not like this\nand more")

    def die(self) -> None:
        os._exit(7)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)
