"""Estimates from its bytes how many tokens a request asks a model for, before anything is tokenized."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewardloop_server.calls.message_size import LARGE_BYTES, MESSAGE_BYTES

if TYPE_CHECKING:
    from rewardloop.v1 import policy_pb2, reward_pb2

# A request for new tokens that does not say how many gets this many by default.
DEFAULT_NEW_TOKENS = 64

# English has 4 to 5 bytes to a token, other scripts fewer.
_BYTES_PER_TOKEN = 4

# More tokens than any model reads, for an estimate that is made before the model is chosen.
_LONGEST = 8192


def bytes_of(request: reward_pb2.ScoreRequest) -> int:
    """Return about how many bytes a group has, as part of the present call's message or as all of it.

    Of a large message the texts are counted, because protobuf's own count takes four times as long.
    """
    if MESSAGE_BYTES.get() < LARGE_BYTES:
        return request.ByteSize()
    return request.prompt.ByteSize() + sum(map(bytes_of_text, request.responses))


def bytes_of_text(text: str) -> int:
    """Return how many bytes of UTF-8 a text has."""
    return len(text) if text.isascii() else len(text.encode())


def estimated_tokens(request: reward_pb2.ScoreRequest, max_length: int = _LONGEST) -> int:
    """Return about how many tokens the group's sequences have, the prompt counted once for each response.

    Args:
        request: The prompt and its responses.
        max_length: The most tokens of one sequence that the model reads.
    """
    prompt, count = request.prompt.ByteSize(), len(request.responses)
    size = prompt * count + max(0, bytes_of(request) - prompt)
    return max(1, min(size // _BYTES_PER_TOKEN, max_length * count))


def estimated_tokens_to_generate(request: policy_pb2.GenerateRequest) -> int:
    """Return about how many tokens the prompt and its candidates have, each candidate as long as it may get."""
    candidates = max(1, request.candidates, request.best_of)
    return request.prompt.ByteSize() // _BYTES_PER_TOKEN + candidates * (request.max_new_tokens or DEFAULT_NEW_TOKENS)
