"""Where records go: gathered, and written in parts that are kept whatever happens next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

#: Records, or seconds, after which a part is written.
_PART, _PART_SECONDS = 200, 60.0

Record = TypeVar("Record")


class Sink(Generic[Record]):
    """``write(records, finished)`` makes a file of a part; what is left when the sink closes is one too. ``finished``: subjects of which
    nothing is left to measure.
    """

    def __init__(
        self, write: Callable[[tuple[Record, ...], tuple[str, ...]], object], clock: Callable[[], float]
    ) -> None:
        self.finished: list[str] = []
        self._write, self._clock = write, clock
        self._records: list[Record] = []
        self._written = clock()

    def __enter__(self) -> Sink[Record]:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()

    def add(self, record: Record) -> None:
        self._records.append(record)
        if len(self._records) >= _PART or self._clock() - self._written >= _PART_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._records or self.finished:
            self._write(tuple(self._records), tuple(self.finished))
        self._records, self.finished, self._written = [], [], self._clock()
