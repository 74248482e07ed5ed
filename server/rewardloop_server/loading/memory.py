"""How much memory a process has taken, and how much this machine or this container has left. For Linux."""

from __future__ import annotations

import sys
from pathlib import Path

_ALL = 2**62
_CGROUP = Path("/sys/fs/cgroup")


def anonymous_bytes(pid: int) -> int:
    """Return the memory that the process has of its own, in bytes: pages of files that it has mapped do not count.

    0 if the process has ended, or on a system without ``/proc``.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return sum(_number(status, name) for name in ("RssAnon:", "RssShmem:", "VmSwap:")) * 1024


def available_bytes() -> int:
    """Return the memory that can be taken without driving anything out, in bytes; a huge number if nothing tells."""
    if sys.platform != "linux":
        return _ALL
    try:
        machine = _number(Path("/proc/meminfo").read_text(encoding="ascii"), "MemAvailable:") * 1024
    except OSError:
        return _ALL
    return min(machine or _ALL, _left_in_container())


def _left_in_container() -> int:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return _ALL
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        files = _number((_CGROUP / "memory.stat").read_text(encoding="ascii"), "inactive_file")
    except (OSError, ValueError):  # there is no such container
        return _ALL
    return max(0, int(limit) - used + files)


def _number(text: str, name: str) -> int:
    """Return the number after a name at the start of a line, or 0."""
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0
