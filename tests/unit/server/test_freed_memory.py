"""Memory of large messages is given back now and then, by one thread at a time."""

from __future__ import annotations

import threading

from rewardloop_server.doors.freed_memory import FreedMemory, trim

MIB = 2**20


def test_it_is_given_back_once_for_many_large_messages_and_never_for_small_ones() -> None:
    given, go_on = threading.Semaphore(0), threading.Event()

    def give_back() -> None:
        given.release()
        go_on.wait(10)

    freed = FreedMemory(give_back)
    for _ in range(10_000):
        freed.came(100_000)
    for _ in range(31):
        freed.came(MIB)
    assert not given.acquire(blocking=False)
    for _ in range(100):
        freed.came(MIB)
    assert given.acquire(timeout=10)
    assert not given.acquire(blocking=False)
    go_on.set()


def test_free_memory_can_be_given_back_on_this_machine() -> None:
    trim()
