"""What crosses from a front to the engine's process and back is what was sent, however the socket cuts it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import (
    DeadlinePassed,
    InternalError,
    InvalidRequest,
    NotLoadable,
    QueueFull,
    RewardloopError,
    Violation,
    errors_of,
)
from rewardloop_server.channel.frames import FrameProtocol
from rewardloop_server.channel.messages import (
    Place,
    Room,
    error_from_bytes,
    error_to_bytes,
    group_from_bytes,
    group_to_bytes,
    room_from_bytes,
    room_to_bytes,
    scored_from_bytes,
    scored_to_bytes,
)
from rewardloop_server.scoring.lane import Scored

PLACES = st.builds(
    Place,
    st.sampled_from(["production", "trainer", "shadow"]),
    st.none() | st.floats(0, 1e9),
    st.text(max_size=40),
    st.text(max_size=40),
)
IDS = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20)


@given(PLACES, st.integers(0, 2**40), st.booleans())
def test_room_that_is_asked_for_arrives_as_it_was(place: Place, tokens: int, is_bounded: bool) -> None:
    room = Room(place, tokens, is_bounded)
    assert room_from_bytes(room_to_bytes(room)) == room


@given(PLACES, st.lists(IDS, min_size=1, max_size=5), st.booleans(), st.integers(0, 2**32 - 1))
def test_group_arrives_as_it_was(place: Place, ids: list[list[int]], has_types: bool, handle: int) -> None:
    rows = [
        Encoded(row, [i % 2 for i in range(len(row))] if has_types else None, truncated=False, prompt_tokens=len(row))
        for row in ids
    ]
    asked = group_from_bytes(group_to_bytes(place, handle, rows))
    assert (asked.place, asked.handle, asked.rows) == (place, handle, rows)


def test_logits_arrive_bit_for_bit() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    back = scored_from_bytes(scored_to_bytes(Scored(logits, 0.25, 0.5, 7, 99)))
    assert back.logits.tobytes() == logits.tobytes()
    assert (back.logits.shape, back.queue_s, back.run_s, back.run_rows, back.run_tokens) == ((3, 5), 0.25, 0.5, 7, 99)


@pytest.mark.parametrize("kind", errors_of(), ids=lambda kind: kind.reason)
def test_every_error_arrives_as_the_same_class(kind: type[RewardloopError]) -> None:
    error = kind.__new__(kind)
    RewardloopError.__init__(error, "why", retry_after_ms=123)
    back = error_from_bytes(error_to_bytes(error))
    assert type(back) is kind
    assert back.to_status() == error.to_status()


def test_details_of_errors_arrive() -> None:
    invalid = InvalidRequest([Violation("responses[0]", "too long"), Violation("", "odd")])
    for error in (invalid, QueueFull("full", retry_after_ms=20), DeadlinePassed("late"), InternalError()):
        back = error_from_bytes(error_to_bytes(error))
        assert back.trailing_metadata() == error.trailing_metadata()
    refused = NotLoadable("it does not load")
    refused.__cause__ = ValueError("the cause, for the log")
    assert str(error_from_bytes(error_to_bytes(refused)).__cause__) == "the cause, for the log"


class Taken(FrameProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[int, int, int, bytes]] = []

    def received(self, kind: int, state: int, number: int, payload: bytes) -> None:
        self.frames.append((kind, state, number, payload))

    def ended(self) -> None:
        pass


@given(st.lists(st.binary(max_size=100), max_size=20), st.randoms(use_true_random=False))
def test_frames_are_found_however_they_are_cut(payloads: list[bytes], rng: random.Random) -> None:
    sent = [(i % 11 + 1, i % 16, i, payload) for i, payload in enumerate(payloads)]
    data = b"".join(
        len(p).to_bytes(4, "little") + bytes([kind, state]) + number.to_bytes(8, "little") + p
        for kind, state, number, p in sent
    )
    taken = Taken()
    while data:
        cut = rng.randint(1, len(data))
        taken.data_received(data[:cut])
        data = data[cut:]
    assert taken.frames == sent
