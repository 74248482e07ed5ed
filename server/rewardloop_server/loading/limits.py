"""How much time and memory a load may take, and the guard that stops what takes longer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rewardloop.formats.store import Manifest
from rewardloop_server.guard.watch import Watch, Work

# Slow disks and machines still read and run the weights at these paces.
_READ_BYTES_PER_S = 50e6
_RUN_BYTES_PER_S = 100e6
# A version takes the bytes of its files up to four times while it is loaded (the file, its tensors, their layout for
# the processor, and a copy), and this much whatever it is.
_COPIES = 4
_LEAST_BYTES = 2**30
# Attention that is not fused keeps a few matrices of float32 for each head: for 64 heads, 768 bytes for two positions.
_BYTES_PER_POSITIONS = 768


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """Bounds of one load.

    Attributes:
        least_s: A step may take so many seconds, beside what the size of the version's files takes.
        memory_bytes: Most memory, beside what the interpreter has; 0 derives it from the version's files and length.
        allows_loops: Take graphs with loops that nothing bounds.
    """

    least_s: float = 30.0
    memory_bytes: int = 0
    allows_loops: bool = False

    def read_s(self, size: int) -> float:
        """Return the most seconds of a step that reads a version of ``size`` bytes, such as opening its graph."""
        return self.least_s + size / _READ_BYTES_PER_S

    def run_s(self, size: int) -> float:
        """Return the most seconds of a run of a few tokens."""
        return self.least_s + size / _RUN_BYTES_PER_S

    def most_bytes(self, size: int, max_length: int) -> int:
        """Return the most bytes of memory of a version of ``size`` bytes that reads ``max_length`` tokens."""
        return self.memory_bytes or _COPIES * size + _LEAST_BYTES + _BYTES_PER_POSITIONS * max_length**2


@dataclass(frozen=True, slots=True)
class LoadGuard:
    """Stops the opening and the runs of one load that do not end.

    Attributes:
        watch: Watches the loading thread.
        model: The model's name.
        version: The version's number.
        open_s: Most seconds of opening a session.
        run_s: Most seconds of a run.
    """

    watch: Watch
    model: str
    version: str
    open_s: float
    run_s: float

    @classmethod
    def of(cls, watch: Watch, limits: LoadLimits, manifest: Manifest, size: int) -> LoadGuard:
        """Return the guard of a load of ``size`` bytes. Twice what a probe allows, which has run before."""
        # A run of the greatest length may take longer than one of a few tokens, by this or, at worst, by its square.
        longer = max(1.0, manifest.max_length / 512)
        return cls(watch, manifest.model, manifest.version, 2 * limits.read_s(size), 2 * longer * limits.run_s(size))

    @contextmanager
    def opening(self, options: Any) -> Iterator[None]:
        """Guard the opening of a session with these SessionOptions."""
        work = Work("opening", self.version, self.open_s, lambda: options.set_load_cancellation_flag(True))
        with self.watch.over(work):
            yield

    @contextmanager
    def running(self, options: Any) -> Iterator[None]:
        """Guard a run with these RunOptions."""
        with self.watch.over(Work("trial run", self.version, self.run_s, lambda: setattr(options, "terminate", True))):
            yield


def size_of(directory: Any, manifest: Manifest) -> int:
    """Return the bytes of the version's files."""
    return sum((directory / name).stat().st_size for name in manifest.files)
