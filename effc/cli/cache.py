"""``effc cache``: what the cache of compiled code holds, and emptying it."""

from __future__ import annotations

import argparse

from effc.cli.command import Command

_MIB = 1 << 20


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("info", "clear"), help="info: entries and size; clear: remove every entry")
    parser.add_argument(
        "--dir", metavar="FOLDER", help="the cache's folder (default: $EFFC_CACHE_DIR, else the user's)"
    )


def _run(args: argparse.Namespace) -> int:
    from effc.runtime.cache import Cache

    cache = Cache(args.dir)
    if args.action == "clear":
        print(f"freed {cache.clear() / _MIB:.1f} MiB in {cache.info().directory}")
        return 0
    found = cache.info()
    print(f"folder   {found.directory}")
    for kind, count in found.entries.items():
        print(f"{kind:<8} {count}")
    print(f"size     {found.size / _MIB:.1f} MiB of {found.limit / _MIB:.0f}")
    return 0


COMMAND = Command("cache", "show what the cache of compiled code holds, or empty it", _add_arguments, _run)
