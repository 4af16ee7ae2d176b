"""Files of records in Parquet, whole by themselves: written to a temporary name that is then replaced, so that what is killed leaves no
half file. Their metadata says what they hold, and of which version. Needs the extra ``costmodel`` (pyarrow).
"""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from effc.compiler.ir.errors import ArtifactError, OptionError

SUFFIX = ".parquet"
#: What reading a text that is no spec may raise, or looking at what it says; and one that describes no machine.
NO_SPEC = (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)
NO_MACHINE = (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Form:
    """``key``: name of the version among the metadata; ``version`` changes with every column; ``schema()``: pyarrow's, without metadata."""

    key: str
    version: int
    schema: Callable[[], Any]

    def write(self, folder: Path, records: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> Path:
        """A new file in ``folder``, under a name of its own. ``told``: metadata, as JSON. ArtifactError: it cannot be written."""
        pa, pq = arrow()
        schema = self.schema()
        metadata = {self.key: str(self.version), **{name: json.dumps(value) for name, value in told.items()}}
        columns = {name: [record[name] for record in records] for name in schema.names}
        table = pa.table(columns, schema=schema.with_metadata(metadata))
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        path, temporary = folder / f"{name}{SUFFIX}", folder / f".{name}.tmp"
        try:
            pq.write_table(table, temporary, compression="zstd")
            os.replace(temporary, path)
        except OSError as error:
            raise ArtifactError(f"{len(records)} records could not be written to {folder}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def read(self, path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Records, and the metadata as text. ArtifactError: it is cut short or damaged, no trace file, or of another version."""
        pa, pq = arrow()
        try:
            table = pq.read_table(path)
            records = table.to_pylist()
        except (pa.ArrowException, OSError, OverflowError, ValueError) as error:  # the last two: of texts and dates
            raise ArtifactError(
                f"{path} cannot be read as traces ({_first_line(error)}): it is cut short, damaged or no Parquet file. Move it away; "
                f"every other file of its folder is whole by itself"
            ) from error
        metadata = {
            name.decode(): text.decode(errors="replace") for name, text in (table.schema.metadata or {}).items()
        }
        version = metadata.get(self.key, "")
        if not version:
            raise ArtifactError(f"{path} holds no traces of effc: its metadata has no '{self.key}'")
        if version != str(self.version) or not table.schema.equals(self.schema(), check_metadata=False):
            raise ArtifactError(
                f"{path} has version {version} of the traces' schema, and this effc reads version {self.version}: read it with the effc "
                f"that wrote it, or collect again"
            )
        return records, metadata


class Record(Protocol):
    """What a file holds many of."""

    def fault(self) -> str:
        """Why this cannot be one, or ``""``."""
        ...


R = TypeVar("R", bound=Record)


def without_faults(records: Iterable[R]) -> tuple[tuple[R, ...], Counter[str]]:
    """Those without a fault, and how many have which."""
    faults = [(record, record.fault()) for record in records]
    return tuple(record for record, fault in faults if not fault), Counter(fault for _, fault in faults if fault)


def files(places: Iterable[Path]) -> list[Path]:
    """The trace files among ``places`` and in the folders among them; OptionError where one is not there or holds none."""
    found: list[Path] = []
    for place in places:
        inside = sorted(place.glob(f"*{SUFFIX}")) if place.is_dir() else [place]
        if not inside or not all(path.is_file() for path in inside):
            raise OptionError(f"there are no traces in {place}: give a {SUFFIX} file, or a folder of them")
        found += inside
    return found


def holds(path: Path, key: str) -> bool:
    """Whether the file's metadata has a version by that name; False where it cannot be read."""
    pa, pq = arrow()
    try:
        return key.encode() in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def arrow() -> tuple[Any, Any]:
    """pyarrow, and its part for Parquet; OptionError: it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise OptionError("traces need pyarrow: pip install 'effc[costmodel]'") from None
    return pyarrow, pyarrow.parquet


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")
