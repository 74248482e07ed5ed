"""A large ScoreBatch as it came, whose groups are parsed one at a time.

A parsed message takes memory beside the bytes that it came in, and up to twice as much: gRPC keeps those until the call
has ended. Many large batches wait for the engine at once, and their groups need no other form until their turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, overload

from google.protobuf.message import DecodeError

from rewardloop.v1 import reward_pb2

SCORE_BATCH: Final = "/rewardloop.v1.RewardService/ScoreBatch"

_LARGE_BYTES = 256 * 1024

# Bytes of a field's value by its wire type, of those with a fixed size.
_FIXED = {1: 8, 5: 4}
_VARINT, _DELIMITED = 0, 2
_GROUPS_TAG = reward_pb2.ScoreBatchRequest.GROUPS_FIELD_NUMBER << 3 | _DELIMITED


@dataclass(frozen=True, slots=True)
class _Groups(Sequence[reward_pb2.ScoreRequest]):
    """The groups of a batch. Each is parsed whenever it is asked for."""

    data: memoryview
    places: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> reward_pb2.ScoreRequest: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[reward_pb2.ScoreRequest]: ...
    def __getitem__(self, index: int | slice) -> reward_pb2.ScoreRequest | Sequence[reward_pb2.ScoreRequest]:
        if isinstance(index, slice):
            return _Groups(self.data, self.places[index])
        start, end = self.places[index]
        return reward_pb2.ScoreRequest.FromString(self.data[start:end])  # type: ignore[arg-type]  # it takes a view


@dataclass(frozen=True, slots=True)
class LargeBatch:
    """Stands for a ScoreBatchRequest.

    Attributes:
        groups: Its groups, as far as a batch may have them.
    """

    groups: Sequence[reward_pb2.ScoreRequest]
    size: int

    def ByteSize(self) -> int:
        """Return the bytes that the batch came in, by the name that protobuf gives it."""
        return self.size


Batch: TypeAlias = reward_pb2.ScoreBatchRequest | LargeBatch


def decode_batch(data: bytes, max_groups: int) -> Batch:
    """Return the batch that was serialized as ``data``.

    A large one with more groups than ``max_groups`` has one more, and none of them is looked at, because it is refused
    by their number. Raises DecodeError if protobuf cannot parse it.
    """
    if len(data) <= _LARGE_BYTES:
        return reward_pb2.ScoreBatchRequest.FromString(data)
    try:
        places = _places(data, max_groups + 1)
    except (_Unusual, IndexError):
        return reward_pb2.ScoreBatchRequest.FromString(data)
    groups = _Groups(memoryview(data), places)
    if len(groups) <= max_groups:
        for _ in groups:  # raises DecodeError for one that is not valid
            pass
    return LargeBatch(groups, len(data))


class _Unusual(DecodeError):
    """Raised for bytes that protobuf may take or not, in a form that no client writes."""


def _places(data: bytes, most: int) -> list[tuple[int, int]]:
    """Return where each group begins and ends, of the first ``most`` groups. Raises _Unusual or IndexError."""
    places: list[tuple[int, int]] = []
    at = 0
    while at < len(data) and len(places) < most:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _DELIMITED:
            size, at = _varint(data, at)
            if tag == _GROUPS_TAG:
                places.append((at, at + size))
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise _Unusual
        if at > len(data):
            raise _Unusual
    return places


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins there, and where it ends."""
    value = shift = 0
    while (byte := data[at]) & 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 28:
            raise _Unusual
    return value | byte << shift, at + 1
