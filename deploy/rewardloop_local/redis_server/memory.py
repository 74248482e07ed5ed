"""How much memory this process and its children may use."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

_CGROUP_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bound() -> int:
    """Return the least of the machine's memory, the container's limit and the process limit, in bytes."""
    bounds = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CGROUP_FILES:
        with suppress(OSError, ValueError):  # no such file, or the word "max"
            bounds.append(int(path.read_text()))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        bounds.append(soft)
    return min(bounds)
