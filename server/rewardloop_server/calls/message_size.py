"""The bytes in which the message came on which the present task works."""

from __future__ import annotations

from contextvars import ContextVar

# Those of the latest message; 0 if no interceptor read one. Protobuf encodes a parsed message again to count its bytes.
MESSAGE_BYTES: ContextVar[int] = ContextVar("message_bytes", default=0)
