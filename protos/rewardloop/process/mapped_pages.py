"""Keeps large files that are mapped into memory from filling it.

The pages of a mapped file that a process has read stay resident until the system is short of memory. They are dropped
from the process here. The system keeps them in its page cache as long as nobody needs the memory, so that reading them
again is cheap.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LEAST_BYTES = 64 * 2**20  # a mapping with fewer resident bytes is left alone
_EVERY_S = 0.1
_MADV_DONTNEED = 4
_HELD = frozenset(("Rss", "Anonymous", "Swap"))
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+) *(.*)")


def drop_read_pages(path: Path | None = None) -> None:
    """Drop the resident pages of mapped files, if the system is Linux.

    A mapping in which a page was written is left as it is. No other thread may write to a mapping, or end it, during
    the call: what it wrote would be lost.

    Args:
        path: The file whose mappings are meant; None for all files.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    for start, length in _read_mappings("" if path is None else str(path.resolve())):
        # The pages of a mapping that cannot be dropped, such as a locked one, stay resident, which is harmless.
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_DONTNEED)


@contextmanager
def dropping_read_pages(path: Path) -> Iterator[None]:
    """Drop the resident pages of a mapped file every 100 ms within this context, in which nobody may write to it."""
    ended = threading.Event()

    def drop() -> None:
        while not ended.wait(_EVERY_S):
            drop_read_pages(path)

    thread = threading.Thread(target=drop, name="drop-read-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _read_mappings(path: str) -> list[tuple[int, int]]:
    """Return address and length of each mapping of a file that holds many pages and none that was written.

    There is none if the system does not say what the mappings hold.
    """
    try:
        described = Path("/proc/self/smaps").read_text(errors="replace")
    except OSError:  # in some sandboxes
        return []
    return mappings_to_drop(described, path)


def mappings_to_drop(smaps: str, path: str) -> list[tuple[int, int]]:
    """Return address and length of each mapping that a text of ``/proc/self/smaps`` says may be dropped.

    Args:
        smaps: The text.
        path: The file whose mappings are meant; empty for all files.
    """
    found = []
    place: tuple[int, int] | None = None
    held: dict[str, int] = {}

    def end_mapping() -> None:
        # A written page is anonymous while it is resident, and is counted as swapped once it is not.
        is_written = held.get("Anonymous", 1) > 0 or held.get("Swap", 0) > 0
        if place is not None and not is_written and held.get("Rss", 0) >= _LEAST_BYTES:
            found.append(place)

    for line in smaps.splitlines():
        if mapping := _MAPPING.match(line):
            end_mapping()
            start, end = int(mapping[1], 16), int(mapping[2], 16)
            is_meant = mapping[4] != "0" and "x" not in mapping[3] and path in ("", mapping[5])
            place, held = ((start, end - start) if is_meant else None), {}
            continue
        name, _, value = line.partition(":")
        if name in _HELD:
            held[name] = int(value.split()[0]) * 1024
    end_mapping()
    return found
