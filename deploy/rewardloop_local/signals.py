"""Lets signals stop a process in order, also after its terminal was closed."""

from __future__ import annotations

import asyncio
import os
import signal
import stat


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set ``stop`` on Ctrl-C, on SIGTERM, and when the terminal closes. Under nohup a closed terminal stops nothing."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, _hang_up, stop)


def _hang_up(stop: asyncio.Event) -> None:
    # Writing to a terminal that is gone raises an error, which would leave the processes running.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
    stop.set()
