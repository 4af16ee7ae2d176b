"""The cache on disk: damage, other processes, full and foreign folders cost time, never a wrong result."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from effc.compiler.ir.errors import CacheError
from effc.runtime.cache import Cache

KEY = "ab" + "0" * 62


def entry(cache: Cache, key: str = KEY) -> Path:
    return cache.root / "objects" / key[:2] / key


def test_what_is_put_is_got_by_another_instance(tmp_path: Path) -> None:
    Cache(tmp_path).put("objects", KEY, b"code")
    assert Cache(tmp_path).get("objects", KEY) == b"code"
    assert Cache(tmp_path).get("programs", KEY) is None


def test_folders_are_private(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new")
    cache.put("objects", KEY, b"code")
    for path in (cache.root, cache.root / "objects", entry(cache).parent):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "foreign", "renamed"])
def test_damaged_entry_is_discarded_and_can_be_written_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    cache.put("objects", KEY, b"code" * 100)
    path = entry(cache)
    data = path.read_bytes()
    if damage == "renamed":
        cache.put("objects", "ab" + "1" * 62, b"other code")
        os.replace(entry(cache, "ab" + "1" * 62), path)
    else:
        path.write_bytes(
            {"truncated": data[:-1], "flipped": data[:-1] + b"!", "emptied": b"", "foreign": b"#!/bin/sh\n" * 20}[
                damage
            ]
        )
    assert cache.get("objects", KEY) is None
    cache.put("objects", KEY, b"again")
    assert cache.get("objects", KEY) == b"again"


def test_least_recently_used_entries_are_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=10_000)
    keys = [f"{i:02x}" + "0" * 62 for i in range(12)]
    for age, key in enumerate(keys[:9]):
        cache.put("objects", key, bytes(1000))
        os.utime(entry(cache, key), (1_000_000 + age, 1_000_000 + age))
    assert cache.get("objects", keys[0]) is not None, "used now, though it is the oldest"
    for key in keys[9:]:
        cache.put("objects", key, bytes(1000))
    assert cache.info().size <= 10_000
    assert cache.get("objects", keys[0]) is not None
    assert cache.get("objects", keys[1]) is None
    assert cache.get("objects", keys[11]) is not None


def test_temporary_files_of_killed_writers_are_no_entries_and_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3000)
    cache.put("objects", KEY, bytes(10))
    left = entry(cache).with_name(".0123.tmp")
    left.write_bytes(bytes(100))
    os.utime(left, (time.time() - 7200,) * 2)
    assert cache.info().entries == {"programs": 0, "objects": 1, "graphs": 0, "hardware": 0, "timings": 0}
    for i in range(4):
        cache.put("objects", f"cd{i}" + "0" * 61, bytes(1000))
    assert not left.exists()


def test_writer_killed_at_any_moment_leaves_no_broken_entry(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom effc.runtime.cache import Cache\ncache = Cache(sys.argv[1])\nprint('ready', flush=True)\n"
        "while True:\n  for i in range(50):\n    cache.put('objects', f'{i:02d}' + '0' * 62, bytes([i]) * 200_000)\n"
    )
    for delay in (0.0, 0.013, 0.05):
        command = [sys.executable, "-P", "-c", script, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(delay)
            writer.kill()
        cache = Cache(tmp_path)
        for i in range(50):
            assert cache.get("objects", f"{i:02d}" + "0" * 62) in (None, bytes([i]) * 200_000)
        assert cache.counters["discarded"] == 0


def test_many_processes_share_a_folder(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom effc.runtime.cache import Cache\ncache = Cache(sys.argv[1], limit=300_000)\n"
        "for step in range(300):\n  i = step * int(sys.argv[2]) % 37\n  key = f'{i:02d}' + '0' * 62\n"
        "  found = cache.get('objects', key)\n  assert found in (None, bytes([i]) * 20_000), key\n"
        "  cache.put('objects', key, bytes([i]) * 20_000)\n  if step % 100 == 99: cache.clear()\n"
        "assert cache.counters['discarded'] == 0\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-W", "error", "-P", "-c", script, str(tmp_path), str(k)]) for k in (3, 5, 7)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]


def test_full_disk_warns_once_and_costs_only_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        cache.put("objects", KEY, b"code")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("objects", KEY, b"code")
    assert cache.get("objects", KEY) is None
    assert not list(tmp_path.rglob("*.tmp"))


def test_unusable_folder_that_the_user_named_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="choose another by"):
        Cache(tmp_path / "file")


def test_unusable_default_folder_warns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("EFFC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        cache = Cache()
    cache.put("objects", KEY, b"code")
    assert cache.get("objects", KEY) is None


def test_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    Cache(tmp_path).root.chmod(0o777)
    with pytest.raises(CacheError, match="chmod 700"):
        Cache(tmp_path)


def test_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "v1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="belongs to you"):
        Cache(tmp_path)


def test_info_and_clear(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("objects", KEY, bytes(100))
    cache.put("programs", KEY, bytes(200))
    info = cache.info()
    assert info.entries == {"programs": 1, "objects": 1, "graphs": 0, "hardware": 0, "timings": 0}
    assert cache.clear() == info.size > 300
    assert cache.info().size == 0
