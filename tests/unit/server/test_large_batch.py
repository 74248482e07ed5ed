"""A large ScoreBatch is the same batch, parsed group by group."""

from __future__ import annotations

import time

import pytest
from google.protobuf.message import DecodeError

from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_server.calls.large_batch import LargeBatch, decode_batch
from rewardloop_server.doors.price import tokens_of

MOST = 1024


def batch(groups: int, size: int) -> reward_pb2.ScoreBatchRequest:
    return reward_pb2.ScoreBatchRequest(
        groups=[
            reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text=f"prompt {i}"), responses=["ü" * size, "", f"{i}"])
            for i in range(groups)
        ]
    )


@pytest.mark.parametrize(("groups", "size"), [(1, 200_000), (7, 50_000), (MOST, 200)])
def test_a_large_batch_has_the_groups_of_its_message(groups: int, size: int) -> None:
    message = batch(groups, size)
    large = decode_batch(message.SerializeToString(), MOST)
    assert isinstance(large, LargeBatch)
    assert list(large.groups) == list(message.groups)
    assert list(large.groups[1:3]) == list(message.groups[1:3])
    assert (len(large.groups), large.ByteSize()) == (groups, message.ByteSize())
    assert tokens_of(large) == tokens_of(message)


def test_a_small_batch_is_parsed_at_once() -> None:
    assert decode_batch(batch(3, 10).SerializeToString(), MOST) == batch(3, 10)


def test_fields_that_this_release_does_not_know_are_passed_over() -> None:
    unknown = [b"\x50\xff\x01", b"\x5a\x03abc", b"\x61" + b"8" * 8, b"\x6d" + b"4" * 4]
    group = batch(1, 100_000).SerializeToString()
    large = decode_batch(group.join(unknown), MOST)
    assert isinstance(large, LargeBatch)
    assert list(large.groups) == [batch(1, 100_000).groups[0]] * 3


def test_an_old_group_of_fields_is_left_to_protobuf() -> None:
    data = batch(2, 100_000).SerializeToString() + b"\x5b\x50\x01\x5c"
    assert len(decode_batch(data, MOST).groups) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        batch(1, 200_000).SerializeToString()[:-1],
        batch(1, 200_000).SerializeToString() + b"\x0a",
        batch(1, 200_000).SerializeToString() + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        batch(1, 200_000).SerializeToString() + b"\x0a\x03\x12\x01\xff",  # a text that is not UTF-8
        b"\x0f" * 300_000,
    ],
    ids=["cut off", "no size", "an endless size", "no UTF-8", "no wire type"],
)
def test_bytes_that_are_no_batch_are_refused(wrong: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_batch(wrong, MOST)


def test_millions_of_groups_are_told_by_one_too_many() -> None:
    data = b"\x0a\x00" * 4_000_000
    started = time.process_time()
    assert len(decode_batch(data, MOST).groups) == MOST + 1
    assert time.process_time() - started < 0.1
