"""Estimates a request's cost in tokens, for its caller's quota. It has the bytes alone: nothing is tokenized yet."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from google.protobuf.message import Message

from rewardloop.v1 import policy_pb2, reward_pb2
from rewardloop_server.calls.estimate import estimated_tokens, estimated_tokens_to_generate
from rewardloop_server.calls.large_batch import LargeBatch

_MOST_GROUPS = 10_000  # a batch with more groups is refused, and must not cost a walk through all of them before


# Returns how many models read a group that names this model or mixture.
Readers = Callable[[str], int]


def one_reader(name: str) -> int:
    """Return 1: a process without mixtures has one model for each name."""
    return 1


def tokens_of(request: Message | LargeBatch, readers: Readers = one_reader) -> int:
    """Return about how many tokens of models' work the request asks for; 0 if it asks no model.

    A group counts once for each model that reads it.
    """
    match request:
        case reward_pb2.ScoreRequest():
            return _tokens_to_score(request, readers)
        case reward_pb2.ScoreStreamRequest():
            return _tokens_to_score(request.request, readers)
        case reward_pb2.ScoreBatchRequest() | LargeBatch():
            return sum(_tokens_to_score(group, readers) for group in islice(request.groups, _MOST_GROUPS))
        case policy_pb2.GenerateStreamRequest():
            return tokens_of(request.request, readers)
        case policy_pb2.GenerateRequest():
            more = readers(request.reward_model) - 1 if request.reward_model and request.best_of else 0
            return estimated_tokens_to_generate(request) * (1 + more)
        case _:
            return 0


def _tokens_to_score(group: reward_pb2.ScoreRequest, readers: Readers) -> int:
    return estimated_tokens(group) * (readers(group.model) if group.model else 1)
