"""Runs cases by name in a process of their own, which can be ended, so that one that hangs costs its own time alone."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

Json = dict[str, Any]
Run = Callable[[str], Iterator[Json]]
_END_S = 5.0


class Skipped(Exception):
    """A case that has nothing to show here; the message says why."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a case ended.

    Attributes:
        outcome: "cut off" if it took longer than it may.
        figures: What it said until then.
        why: Why it was skipped, failed or was cut off.
    """

    outcome: Literal["done", "skipped", "failed", "cut off"]
    figures: Json
    why: str = ""


class Worker:
    """A process that runs cases one after another. It starts at once.

    Args:
        serve: Called in the process with its end of a pipe and ``arguments``; it prepares, and calls `answer`.
        arguments: Further arguments, which are pickled.
    """

    def __init__(self, serve: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")  # a process that is forked cannot use CUDA
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, serve, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, name: str, limit_s: float) -> Ended:
        """Run a case, the preparation before the first one included, for at most so many seconds.

        After an outcome of "cut off" the process is still in the case: call `end`.
        """
        until = time.monotonic() + limit_s
        figures: Json = {}
        try:
            self._ours.send(name)
            while self._ours.poll(max(0.0, until - time.monotonic())):
                kind, value = self._ours.recv()
                if kind != "figures":
                    return Ended(kind, figures, value)
                figures |= value
        except (EOFError, OSError):
            self._process.join(_END_S)
            return Ended("failed", figures, f"its process ended with status {self._process.exitcode}")
        return Ended("cut off", figures, f"cut off after {limit_s:.0f} s")

    def end(self) -> None:
        """Kill the process. One that hangs in a driver may outlive this call."""
        self._process.kill()
        self._process.join(_END_S)
        self._ours.close()


def answer(connection: Connection, run: Run) -> None:
    """Run each case that is asked for, and send what it says as it says it, until the other end closes."""
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        try:
            for figures in run(name):
                connection.send(("figures", figures))
        except Skipped as reason:
            connection.send(("skipped", str(reason)))
        except Exception as error:  # of torch, ONNX Runtime and the case itself; its line says which
            connection.send(_failed(error))
        else:
            connection.send(("done", ""))


def _serve(connection: Connection, serve: Callable[..., None], arguments: tuple[object, ...]) -> None:
    try:
        serve(connection, *arguments)
    except Exception as error:  # nothing can be run; the first case says why
        connection.send(_failed(error))


def _failed(error: Exception) -> tuple[str, str]:
    traceback.print_exception(error)
    return "failed", f"{type(error).__name__}: {error}"[:2_000]
