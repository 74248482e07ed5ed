"""The share of time for which the event loop's thread computes, and the runs that leave it a core."""

from __future__ import annotations

import time

import pytest

from rewardloop_server.observe import thread_load
from rewardloop_server.observe.thread_load import ThreadLoad


class Clocks:
    """The time that passes, and that for which the thread holds a core."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.used = 0.0
        monkeypatch.setattr(thread_load.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(thread_load.time, "thread_time", lambda: self.used)

    def pass_by(self, seconds: float, used: float) -> None:
        self.now += seconds
        self.used += used


def test_the_share_is_that_of_the_latest_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    load = ThreadLoad()
    assert load.share() == 0.0
    clocks.pass_by(0.1, used=0.09)
    assert load.share() == pytest.approx(0.9)
    clocks.pass_by(1.0, used=0.01)
    assert load.share() == pytest.approx(0.01)


def test_one_large_message_is_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    load = ThreadLoad()
    clocks.pass_by(0.02, used=0.02)
    assert load.share() == 0.0
    clocks.pass_by(0.04, used=0.0)
    assert load.share() == pytest.approx(1 / 3)


def test_a_thread_that_computes_is_told_from_one_that_sleeps() -> None:
    load = ThreadLoad()
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        pass
    assert load.share() > 0.0
    time.sleep(1.0)
    assert load.share() < 0.1
