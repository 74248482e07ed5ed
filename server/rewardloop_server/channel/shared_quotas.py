"""Fronts count in files that all of them map what callers have left, so that no caller gets a quota for each front.

A file for each caller and quota has the level and the time of three token buckets (requests, tokens, bytes), and then
for each front how many requests it has in flight. A lock on the file covers each change of the buckets.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rewardloop_server.calls.errors import QuotaSpent
from rewardloop_server.calls.vocabulary import QuotaName
from rewardloop_server.doors.quotas import Allowance, Quota

_BUCKETS: tuple[QuotaName, ...] = ("requests", "tokens", "bytes")
_BUCKET = struct.Struct("<dd")
_COUNT = struct.Struct("<q")
_COUNTS_AT = _BUCKET.size * len(_BUCKETS)


class SharedQuotas:
    """Makes the allowances of one front.

    Args:
        folder: A private folder that all fronts share. It is emptied whenever the service starts.
        front: The number of this front, from 0. What a dead front of this number had in flight is forgotten.
        fronts: How many fronts there are.
    """

    def __init__(self, folder: Path, front: int, fronts: int) -> None:
        self._folder = folder
        self._front = front
        self._size = _COUNTS_AT + _COUNT.size * fronts
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in folder.iterdir():
            with path.open("r+b") as file:
                os.pwrite(file.fileno(), _COUNT.pack(0), _COUNTS_AT + _COUNT.size * front)

    def __call__(self, caller: str, quota: Quota) -> Allowance:
        """Return what the caller has left of this quota."""
        if not Allowance(caller, quota).is_bounded:
            return Allowance(caller, quota)
        name = hashlib.sha256(f"{caller}\n{quota}".encode()).hexdigest()
        return _SharedAllowance(caller, quota, self._folder / name, self._size, self._front)


class _SharedAllowance(Allowance):
    """`Allowance` whose state is in a file. Every method reads it, changes it, and writes it under the file's lock."""

    def __init__(
        self,
        caller: str,
        quota: Quota,
        path: Path,
        size: int,
        front: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(caller, quota, clock)
        self._file = -1
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._own = _COUNTS_AT + _COUNT.size * front
        with self._locked():
            is_new = os.fstat(self._file).st_size < size
            if is_new:
                os.ftruncate(self._file, size)
            self._state = mmap.mmap(self._file, size)
            if is_new:
                self._write()

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def enter(self) -> tuple[QuotaName, QuotaSpent] | None:
        with self._changing():
            refused = super().enter()
            if refused is None:
                self._count(1)
            return refused

    def leave(self, _: object = None) -> None:
        self._count(-1)

    def take_message(self) -> None:
        with self._changing():
            super().take_message()

    def take(self, tokens: int, size: int) -> None:
        with self._changing():
            super().take(tokens, size)

    def pause_s(self) -> float:
        with self._changing():
            return super().pause_s()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)  # held for microseconds
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._locked():
            counts = range(_COUNTS_AT, len(self._state), _COUNT.size)
            self._in_flight = sum(_COUNT.unpack_from(self._state, at)[0] for at in counts)
            for number, name in enumerate(_BUCKETS):
                if (bucket := self._buckets.get(name)) is not None:
                    bucket.state = _BUCKET.unpack_from(self._state, number * _BUCKET.size)
            try:
                yield
            finally:
                self._write()

    def _write(self) -> None:
        for number, name in enumerate(_BUCKETS):
            if (bucket := self._buckets.get(name)) is not None:
                _BUCKET.pack_into(self._state, number * _BUCKET.size, *bucket.state)

    def _count(self, change: int) -> None:
        """Change the number of this front's requests in flight, which no other process writes."""
        (own,) = _COUNT.unpack_from(self._state, self._own)
        _COUNT.pack_into(self._state, self._own, own + change)
