"""Threads that step back, and those that they start."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from rewardloop_server.device.priority import step_back

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's on Linux alone")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_thread_and_those_it_starts_step_back_and_no_other() -> None:
    mine, seen = niceness(), list[int]()

    def start_another() -> None:
        step_back(2)
        seen.append(niceness())
        inner = threading.Thread(target=lambda: seen.append(niceness()))
        inner.start()
        inner.join()

    thread = threading.Thread(target=start_another)
    thread.start()
    thread.join()
    assert seen == [min(mine + 2, 19)] * 2
    assert niceness() == mine
