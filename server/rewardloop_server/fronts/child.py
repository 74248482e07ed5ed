"""``python -m rewardloop_server.fronts.child``: one process of a service that has several, as its order says.

It ends when its standard input does, which the process that started it holds open: so it outlives that process by no
more than its drain.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
import uvloop

from rewardloop.process.log import configure_logging
from rewardloop.process.tracing import start_tracing
from rewardloop_server.channel.front import Folder, Front
from rewardloop_server.channel.pages import show
from rewardloop_server.fronts.engine import run_engine
from rewardloop_server.fronts.order import Order
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.serving import serve

READY = b"ready\n"
# Written this often after that, for as long as the event loop turns.
BEAT, BEAT_S = b"\n", 1.0


def main() -> int:
    """Run until the standard input ends, a front also until SIGTERM. Returns the exit status."""
    order = Order.from_line(sys.stdin.buffer.readline())
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as in `rewardloop_server.app`
    settings = order.settings
    is_traced = not order.is_engine and start_tracing("rewardloop-server", settings.tracing_endpoint)
    configure_logging(settings.log_level, settings.log_format, is_traced)
    _name_the_process(order.name)
    _open_many_files()
    folder, metrics = Folder(order.folder), ServerMetrics()
    show(folder.page(order.name), metrics.registry, is_engine=order.is_engine)
    if order.is_engine:
        # The fronts need it until they have drained, even if a terminal or a service manager signals every process.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        return uvloop.run(run_engine(settings, folder, metrics, _say_ready, _at_end_of_input))
    _at_end_of_input(lambda: os.kill(os.getpid(), signal.SIGTERM))
    front = Front(order.number, settings.front_processes, folder, metrics, _say_ready)
    return uvloop.run(serve(settings, is_traced, front))


def _say_ready() -> None:
    """Tell the process that started this one, which from now on hears that the event loop turns."""
    pipe = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed does not belong there
    os.set_blocking(pipe, False)
    os.write(pipe, READY)
    loop = asyncio.get_running_loop()

    def beat() -> None:
        with suppress(BlockingIOError, BrokenPipeError):  # nobody reads, so nobody waits for it
            os.write(pipe, BEAT)
        loop.call_later(BEAT_S, beat)

    beat()


def _at_end_of_input(end: Callable[[], object]) -> None:
    """Call ``end`` in a thread once the standard input ends."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        end()

    threading.Thread(target=watch, name="input", daemon=True).start()


def _open_many_files() -> None:
    """Allow as many open files as the system does, because each caller with a quota takes two of a front's."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _name_the_process(name: str) -> None:
    """Add the process to each event of the log."""

    def named(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {"process": name, **event}

    structlog.configure(processors=[named, *structlog.get_config()["processors"]])


if __name__ == "__main__":
    raise SystemExit(main())
