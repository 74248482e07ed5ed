"""Estimates a request's cost in tokens, for its caller's quota. It has the bytes alone: nothing is tokenized yet."""

from __future__ import annotations

from itertools import islice

from google.protobuf.message import Message

from rewardloop.v1 import policy_pb2, reward_pb2
from rewardloop_server.calls.estimate import estimated_tokens, estimated_tokens_to_generate

_MOST_GROUPS = 10_000  # a batch with more groups is refused, and must not cost a walk through all of them before


def tokens_of(request: Message) -> int:
    """Return about how many tokens of a model's work the request asks for; 0 if it asks no model."""
    match request:
        case reward_pb2.ScoreRequest():
            return estimated_tokens(request)
        case reward_pb2.ScoreStreamRequest():
            return estimated_tokens(request.request)
        case reward_pb2.ScoreBatchRequest():
            return sum(estimated_tokens(group) for group in islice(request.groups, _MOST_GROUPS))
        case policy_pb2.GenerateRequest():
            return estimated_tokens_to_generate(request)
        case _:
            return 0
