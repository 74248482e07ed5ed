"""How many tokens a request asks a model to read, estimated from its bytes before anything is tokenized."""

from __future__ import annotations

from rewardloop.v1 import reward_pb2

# English has 4 to 5 bytes to a token, other scripts fewer; see `estimated_tokens`.
_BYTES_PER_TOKEN = 4


# Longer than any model reads, for where the model is not chosen yet.
_LONGEST = 8192


def estimated_tokens(request: reward_pb2.ScoreRequest, max_length: int = _LONGEST) -> int:
    """About how many tokens the group's sequences have, from its bytes alone."""
    prompt, count = request.prompt.ByteSize(), len(request.responses)
    size = prompt * count + max(0, request.ByteSize() - prompt)
    return max(1, min(size // _BYTES_PER_TOKEN, max_length * count))
