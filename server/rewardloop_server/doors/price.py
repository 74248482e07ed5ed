"""What a request costs its caller's quota of tokens, from its bytes alone: it is asked before anything is tokenized."""

from __future__ import annotations

from google.protobuf.message import Message

from rewardloop.v1 import policy_pb2, reward_pb2
from rewardloop_server.calls.estimate import estimated_tokens

_BYTES_PER_TOKEN = 4
_NEW_TOKENS = 64  # the policy worker's default, which a request without max_new_tokens gets


def tokens_of(request: Message) -> int:
    """About how many tokens of a model's work the request asks for; 0 for those that ask no model."""
    match request:
        case reward_pb2.ScoreRequest():
            return estimated_tokens(request)
        case reward_pb2.ScoreStreamRequest():
            return estimated_tokens(request.request)
        case reward_pb2.ScoreBatchRequest():
            return sum(estimated_tokens(group) for group in request.groups)
        case policy_pb2.GenerateRequest():
            samples = max(1, request.candidates, request.best_of)
            return request.prompt.ByteSize() // _BYTES_PER_TOKEN + samples * (request.max_new_tokens or _NEW_TOKENS)
        case _:
            return 0
