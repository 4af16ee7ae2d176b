"""The cache on disk: entries by kind and key, private to the user, each with a digest that is checked when it is read.

Entries are code that this process will run, so the folder must be the user's own and closed to others. An entry is written to a
temporary name and renamed: a killed process or a full disk leaves no broken entry, and costs only the time to compile again.
Any number of processes share a folder; the least recently used entries go when it grows past its limit.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from effc.compiler.ir.errors import CacheError

#: ``graphs``: which of Dynamo's graphs were met (`capture.ahead`).
KINDS = ("programs", "objects", "graphs", "hardware", "timings")
LIMIT_BYTES = 2 << 30  # a program is 0.1 to 1 MB: some thousands of them
_KEPT_FRACTION = 0.8  # eviction goes below the limit, so that it does not run at every write
_STALE_SECONDS = 3600  # a temporary file of that age was left by a killed process
_MAGIC = b"effc cache 1\n"
_VERSION = "v1"


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds: entries by kind, and bytes."""

    directory: Path
    entries: dict[str, int]
    size: int
    limit: int


def default_directory() -> Path:
    """``$EFFC_CACHE_DIR``, else ``effc`` in the user's cache folder."""
    given = os.environ.get("EFFC_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "effc"


class Cache:
    """``directory``: None takes the default one, and does without a cache (one warning) where it cannot be used.

    CacheError: a directory that the user named, by argument or ``EFFC_CACHE_DIR``, cannot be used.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, limit: int = LIMIT_BYTES) -> None:
        self.root = (Path(directory) if directory is not None else default_directory()) / _VERSION
        self.limit = limit
        self.counters = dict.fromkeys(("hits", "misses", "discarded", "evicted", "written"), 0)
        self._size: int | None = None  # unknown until the first write
        self._warned = False
        self.usable = True
        try:
            self._open()
        except CacheError as err:
            if directory is not None or os.environ.get("EFFC_CACHE_DIR"):
                raise
            self.usable = False
            self._warn(str(err))

    def _open(self) -> None:
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            found = self.root.lstat()
            for kind in KINDS:
                (self.root / kind).mkdir(mode=0o700, exist_ok=True)
        except OSError as err:
            raise CacheError(f"{_advice(self.root.parent)}: {err.strerror}") from err
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise CacheError(
                f"{_advice(self.root.parent)}: {self.root} must be a folder that belongs to you and is closed to others "
                f"(chmod 700), because code is loaded from it"
            )
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise CacheError(f"{_advice(self.root.parent)}: {self.root} is not writable")

    # -- entries ----------------------------------------------------------------------------------------------------
    def get(self, kind: str, key: str) -> bytes | None:
        """The entry's bytes, or None. A damaged entry is removed."""
        path = self._path(kind, key)
        try:
            data = path.read_bytes() if self.usable else b""
            if data:
                os.utime(path)
        except OSError:
            data = b""
        if not data:
            self.counters["misses"] += 1
            return None
        payload = data[len(_MAGIC) + 32 :]
        if not data.startswith(_MAGIC) or data[len(_MAGIC) : len(_MAGIC) + 32] != _digest(kind, key, payload):
            self.discard(kind, key)
            self.counters["misses"] += 1
            return None
        self.counters["hits"] += 1
        return payload

    def put(self, kind: str, key: str, payload: bytes) -> None:
        """Write an entry; where that fails, warn once and go on without it."""
        if not self.usable:
            return
        path = self._path(kind, key)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(_MAGIC + _digest(kind, key, payload) + payload)
            os.replace(temporary, path)
        except OSError as err:
            _remove(temporary)
            self._warn(
                f"effc's cache {self.root.parent} could not be written ({err.strerror}); compiled code is not kept"
            )
            return
        self.counters["written"] += 1
        self._grow(len(_MAGIC) + 32 + len(payload))

    def discard(self, kind: str, key: str) -> None:
        """Remove an entry that turned out to be unusable."""
        self.counters["discarded"] += 1
        _remove(self._path(kind, key))

    def _path(self, kind: str, key: str) -> Path:
        if kind not in KINDS:
            raise ValueError(f"the cache keeps {KINDS}, not {kind!r}")
        return self.root / kind / key[:2] / key

    # -- size -------------------------------------------------------------------------------------------------------
    def _grow(self, written: int) -> None:
        self._size = self._size + written if self._size is not None else sum(s.st_size for _, s in self._files())
        if self._size > self.limit:
            self._evict()

    def _evict(self) -> None:
        """Remove the least recently used entries, and what killed processes left."""
        files = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
        size = sum(s.st_size for _, s in files)
        for path, found in files:
            left = path.suffix == ".tmp"
            if _stale(found) if left else size > self.limit * _KEPT_FRACTION:
                _remove(path)
                size -= found.st_size
                self.counters["evicted"] += not left
        self._size = size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for kind in KINDS:
            for path in (self.root / kind).glob("*/*"):
                try:
                    yield path, path.stat()
                except OSError:
                    continue  # another process removed it

    # -- for people -------------------------------------------------------------------------------------------------
    def info(self) -> CacheInfo:
        """Entries and bytes on disk now."""
        entries, size = dict.fromkeys(KINDS, 0), 0
        for path, found in self._files():
            size += found.st_size
            entries[path.parent.parent.name] += path.suffix != ".tmp"
        return CacheInfo(self.root.parent, entries, size, self.limit)

    def clear(self) -> int:
        """Remove every entry; returns the bytes freed."""
        freed = 0
        for path, found in self._files():
            if path.suffix != ".tmp" or _stale(found):  # not what another process is writing now
                _remove(path)
                freed += found.st_size
        self._size = None
        return freed

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, RuntimeWarning, stacklevel=3)


def _advice(directory: Path) -> str:
    return f"the cache folder {directory} cannot be used (choose another by options['cache_dir'] or EFFC_CACHE_DIR)"


def _digest(kind: str, key: str, payload: bytes) -> bytes:
    """Of the payload and of its name: an entry under another name is not that entry."""
    return hashlib.sha256(b"\0".join([kind.encode(), key.encode(), payload])).digest()


def _stale(found: os.stat_result) -> bool:
    return time.time() - found.st_mtime > _STALE_SECONDS


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        return  # gone already, or in a folder that is read-only now: the next reader checks the digest
