"""The bytes in which the message came on which the present task works."""

from __future__ import annotations

from contextvars import ContextVar

from google.protobuf.message import Message

# A message of this size takes the event loop about a quarter of a millisecond, and larger ones are treated apart.
LARGE_BYTES = 128 * 1024

# The interceptor sets it with each message that it reads; it is 0 if none did. Protobuf would have to encode a parsed
# message again to count its bytes.
MESSAGE_BYTES: ContextVar[int] = ContextVar("message_bytes", default=0)


def bytes_of_message(request: Message) -> int:
    """Return how many bytes the present call's message has, which is the ``request``."""
    return MESSAGE_BYTES.get() or request.ByteSize()
