"""Makes the status that travels to the caller of an error, which is the same for all errors that callers see.

The errors themselves are in `errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "rewardloop"

# A status travels in HTTP/2 trailers, which gRPC refuses above 8 KiB.
_MAX_MESSAGE_CHARS = 300
_MAX_VIOLATIONS = 20
_MAX_VIOLATION_CHARS = 80


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field.

    Attributes:
        field: Path within the request, such as ``groups[3].responses[0]``. Empty for the request as a whole.
        description: What is wrong, without the caller's text.
    """

    field: str
    description: str


class RewardloopError(Exception):
    """Base of all errors that callers see.

    Attributes:
        code: The gRPC status code.
        reason: The word by which clients and metrics know the error.
        retry_after_ms: Milliseconds after which a retry may succeed. None if retrying the same request does not help.
    """

    code: ClassVar[grpc.StatusCode]
    reason: ClassVar[str]
    default_retry_ms: ClassVar[int | None] = None

    def __init__(
        self, message: str, *, violations: Sequence[Violation] = (), retry_after_ms: int | None = None
    ) -> None:
        super().__init__(_cut(message, _MAX_MESSAGE_CHARS))
        self.message = _cut(message, _MAX_MESSAGE_CHARS)
        self.violations = tuple(violations)
        self.retry_after_ms = self.default_retry_ms if retry_after_ms is None else retry_after_ms

    def to_status(self) -> status_pb2.Status:
        """Return the rich status that the caller gets.

        It always has an ErrorInfo; a BadRequest if there are violations; a RetryInfo if a retry may succeed. Long texts
        and long lists of violations are cut.
        """
        details: list[message.Message] = [error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)]
        if self.violations:
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=_cut(v.field, _MAX_VIOLATION_CHARS),
                            description=_cut(v.description, _MAX_VIOLATION_CHARS),
                        )
                        for v in self.violations[:_MAX_VIOLATIONS]
                    ]
                )
            )
        if self.retry_after_ms is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(self.retry_after_ms)
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return status_pb2.Status(code=self.code.value[0], message=self.message, details=[_packed(d) for d in details])

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Return the metadata with the rich status, and with the pushback that gRPC's own retries obey."""
        status: tuple[str, str | bytes] = ("grpc-status-details-bin", self.to_status().SerializeToString())
        if self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and self.retry_after_ms is not None:
            return (status, ("grpc-retry-pushback-ms", str(self.retry_after_ms)))
        return (status,)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def status_name(code: Any) -> str:
    """Return the name of a status code, which grpc.aio's context holds as an enum member or as its number."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((c.name for c in grpc.StatusCode if c.value[0] == code), "UNKNOWN")
