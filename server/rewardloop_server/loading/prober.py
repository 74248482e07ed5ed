"""Tries a version in a child process, within bounds of time and memory, before the serving process loads it.

A graph can be small and need any amount of memory or time as soon as it is opened or run. Here that costs a child
process. The serving process loads only what has passed.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog

from rewardloop.formats.store import Manifest
from rewardloop_server.calls.errors import NotLoadable, VersionRefused, errors_of
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.graph_tables import Tables
from rewardloop_server.loading.limits import LoadLimits, size_of
from rewardloop_server.loading.memory import anonymous_bytes, available_bytes
from rewardloop_server.loading.opening import Checked
from rewardloop_server.loading.probe import PASSED, REFUSED, Order

log = structlog.get_logger()

_EVERY_S = 0.05
# Of the memory that the machine has left, a load may take this share.
_SHARE = 0.9
# What the interpreter and its libraries take. An address space may be larger than what is used of it by so much.
_INTERPRETER_BYTES = 2**28
_UNUSED_BYTES = 2**31
# A run of the greatest length may take so many times what a short one took, by their lengths.
_SLACK = 20

# The programs that try a version: by its graph, and by its torch model.
GRAPH_PROBE, TORCH_PROBE = "rewardloop_server.loading.probe", "rewardloop_server.torch_engine.probe"


def child_of(module: str) -> tuple[str, ...]:
    """Return the command of a child process. The present folder holds no modules of it (-P)."""
    return (sys.executable, "-P", "-m", module)


_REFUSALS = {error.reason: error for error in errors_of(VersionRefused)}


class Prober:
    """Tries versions, one at a time for each thread. A version that has passed is not tried again.

    Args:
        device: Where versions run.
        limits: How much time and memory a load may take.
        command: The child process, as of `child_of`; it does what `rewardloop_server.loading.probe` does.
    """

    def __init__(self, device: Device, limits: LoadLimits, command: Sequence[str] = child_of(GRAPH_PROBE)) -> None:
        self._command = command
        self._device = device
        self._limits = limits
        self._passed: dict[str, Checked | None] = {}
        self._children: set[subprocess.Popen[bytes]] = set()
        self._is_closed = threading.Event()

    def close(self) -> None:
        """End the children."""
        self._is_closed.set()
        for child in tuple(self._children):
            child.kill()

    def probe(self, manifest: Manifest, directory: Path) -> Checked | None:
        """Try a version. Returns what the check of its graph found, or None if it brings none.

        Args:
            manifest: The version's manifest.
            directory: Its files, which the store has verified.

        Raises:
            VersionRefused: It does not load or run, or takes more time or memory than it may.
        """
        if manifest.digest in self._passed:
            return self._passed[manifest.digest]
        started = time.monotonic()
        size = size_of(directory, manifest)
        wanted, left = self._limits.most_bytes(size, manifest.max_length), int(_SHARE * available_bytes())
        trial = _Trial(manifest, size, self._limits, min(wanted, left), has_room=wanted <= left)
        with self._child(manifest, directory, trial.most_bytes) as child:
            found = trial.follow(child, self._is_closed)
        self._passed[manifest.digest] = found
        log.info(
            "version tried",
            version=manifest.version,
            seconds=round(time.monotonic() - started, 3),
            peak_mib=trial.peak_bytes // 2**20,
        )
        return found

    @contextmanager
    def _child(self, manifest: Manifest, directory: Path, most_bytes: int) -> Iterator[subprocess.Popen[bytes]]:
        bound = most_bytes + _INTERPRETER_BYTES + _UNUSED_BYTES
        order = Order(
            manifest=manifest.to_json(),
            directory=str(directory.absolute()),
            # A session at each place on half of the threads, one after the other. All else, such as a GPU's bound of
            # memory, is as where it will serve.
            device=asdict(replace(self._device, threads=max(1, self._device.threads // 2), spin=False, streams=1)),
            allows_loops=self._limits.allows_loops,
            memory_bytes=bound if self._device.kind == "cpu" else 0,  # other devices map far more than they use
            parent=os.getpid(),
        )
        child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._children.add(child)
        try:
            if child.stdin is not None:
                with suppress(BrokenPipeError):  # it died: its end tells
                    child.stdin.write(order.to_json().encode())
                    child.stdin.close()
            yield child
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
            self._children.discard(child)


class _Trial:
    """The course of one trial: which step it is at, until when, and what it took."""

    def __init__(self, manifest: Manifest, size: int, limits: LoadLimits, most_bytes: int, *, has_room: bool) -> None:
        self._where = f"{manifest.model} {manifest.version}"
        self._max_length = manifest.max_length
        self._size = size
        self._limits = limits
        self._has_room = has_room
        self._step, self._began = "start", time.monotonic()
        self._limit_s = limits.read_s(0)
        self.most_bytes = most_bytes
        self.peak_bytes = 0

    def follow(self, child: subprocess.Popen[bytes], is_closed: threading.Event) -> Checked | None:
        """Follow the child to its verdict, and return what it found. Raises VersionRefused."""
        assert child.stdout is not None
        pipe, rest = child.stdout.fileno(), b""
        while True:
            if is_closed.is_set():
                raise NotLoadable(f"{self._where} was not tried to its end: the process ends")
            self._check(child)
            if not select.select([pipe], [], [], _EVERY_S)[0]:
                continue
            if not (data := os.read(pipe, 65_536)):
                raise NotLoadable(
                    f"{self._where} does not load: the process that tried it ended with status {child.wait()} at the "
                    f"step {self._step!r}"
                )
            *lines, rest = (rest + data).split(b"\n")
            for line in map(json.loads, lines):
                if line["step"] == PASSED:
                    found = line["found"]
                    return found and Checked(Tables(**found["tables"]), found["highest"])
                self._take(line)

    def _check(self, child: subprocess.Popen[bytes]) -> None:
        """Raises NotLoadable if the step takes longer, or the child more memory, than it may."""
        used = max(0, anonymous_bytes(child.pid) - _INTERPRETER_BYTES)
        self.peak_bytes = max(self.peak_bytes, used)
        if used > self.most_bytes:
            why = "--load-memory-mib allows" if self._has_room else "this machine has left"
            raise NotLoadable(
                f"{self._where} is not loaded: it takes more than {self.most_bytes // 2**20} MiB of memory at the step "
                f"{self._step!r}, which is what {why}"
            )
        if time.monotonic() - self._began > self._limit_s:
            raise NotLoadable(
                f"{self._where} is not loaded: the step {self._step!r} does not end within {self._limit_s:.0f} s"
            )

    def _take(self, line: dict[str, Any]) -> None:
        """Take the report of a step that begins. Raises VersionRefused if it is a refusal."""
        step, now = line["step"], time.monotonic()
        if step == REFUSED:
            kind = _REFUSALS.get(line["reason"])
            if kind is None:
                raise NotLoadable(f"{self._where} does not load: {line['message']}") from _ChildError(line["cause"])
            raise kind(line["message"]) from (_ChildError(line["cause"]) if line["cause"] else None)
        seconds, before = now - self._began, self._step
        self._step, self._began = step, now
        if step in ("check", "libraries", "open"):
            self._limit_s = self._limits.read_s(self._size)
        elif step == "longest run" and before == "short run":
            times = self._max_length / 16
            self._limit_s = max(self._limits.run_s(self._size), _SLACK * seconds * times * max(1.0, times / 32))
        else:
            self._limit_s = self._limits.run_s(self._size)


class _ChildError(Exception):
    """What was raised in the child, as the cause of the refusal."""
