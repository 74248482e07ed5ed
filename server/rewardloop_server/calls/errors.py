"""Errors that callers see, each with its gRPC code and its reason.

RewardloopError
├── InvalidRequest          INVALID_ARGUMENT      INVALID_REQUEST, with every violation
├── QueueFull               RESOURCE_EXHAUSTED    QUEUE_FULL
├── StoreFull               RESOURCE_EXHAUSTED    STORE_FULL
├── TooManySignals          RESOURCE_EXHAUSTED    TOO_MANY_SIGNALS
├── QuotaSpent              RESOURCE_EXHAUSTED    QUOTA_SPENT
├── NoModel                 UNAVAILABLE           NO_MODEL
├── Draining                UNAVAILABLE           DRAINING
├── RedisUnavailable        UNAVAILABLE           REDIS_UNAVAILABLE
├── PolicyUnavailable       UNAVAILABLE           POLICY_UNAVAILABLE
├── AuditUnavailable        UNAVAILABLE           AUDIT_UNAVAILABLE
├── NoCredentials           UNAUTHENTICATED       NO_CREDENTIALS
├── WrongCredentials        UNAUTHENTICATED       WRONG_CREDENTIALS
├── ExpiredCredentials      UNAUTHENTICATED       EXPIRED_CREDENTIALS
├── NotAllowed              PERMISSION_DENIED     NOT_ALLOWED
├── DeadlinePassed          DEADLINE_EXCEEDED     DEADLINE_PASSED
├── UnknownVersion          NOT_FOUND             UNKNOWN_VERSION
├── UnknownGeneration       NOT_FOUND             UNKNOWN_GENERATION
├── ReplayedSignal          ALREADY_EXISTS        REPLAYED_SIGNAL
├── VersionRefused          base of
│   ├── CorruptVersionError   FAILED_PRECONDITION   CORRUPT_VERSION
│   ├── UnsafeVersionError    FAILED_PRECONDITION   UNSAFE_VERSION
│   ├── UntrustedVersionError FAILED_PRECONDITION   UNTRUSTED_VERSION
│   └── NotLoadable           FAILED_PRECONDITION   NOT_LOADABLE
├── NothingToRollBack       FAILED_PRECONDITION   NOTHING_TO_ROLL_BACK
├── Overtaken               FAILED_PRECONDITION   OVERTAKEN
└── InternalError           INTERNAL              INTERNAL

Messages go to the caller: they name fields, limits and versions, never what a prompt or response says.
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

    ``field``: its path within the request, such as ``groups[3].responses[0]``; empty: the whole request.
    """

    field: str
    description: str


class RewardloopError(Exception):
    """Base. ``retry_after_ms``: when a retry may succeed; None: retrying the same request will not help."""

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
        """The error as it goes out: ErrorInfo always, BadRequest with violations, RetryInfo with a retry time.

        Long texts and long lists of violations are cut.
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


class InvalidRequest(RewardloopError):
    """The request breaks the contract; carries every violation that was found, at least one."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        where = f"{first.field}: " if first.field else ""
        super().__init__(f"{where}{first.description}{more}", violations=violations)


class QueueFull(RewardloopError):
    """The lane's queue has no room for the request."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"
    default_retry_ms = 100


class StoreFull(RewardloopError):
    """Redis is at its memory limit and refuses writes, nothing being evicted; or the spool is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "STORE_FULL"
    default_retry_ms = 5000


class TooManySignals(RewardloopError):
    """The annotator has sent as many signals as one may in this minute or day."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_SIGNALS"
    default_retry_ms = 60_000


class QuotaSpent(RewardloopError):
    """The caller has used up what it may ask for in this time; others are served."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUOTA_SPENT"
    default_retry_ms = 100


class NoModel(RewardloopError):
    """No version of the model is warm in this process."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "NO_MODEL"
    default_retry_ms = 500


class Draining(RewardloopError):
    """The process is shutting down; another replica may answer."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"
    default_retry_ms = 500


class RedisUnavailable(RewardloopError):
    """Redis does not answer, or is still loading its data. A write may or may not have happened."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "REDIS_UNAVAILABLE"
    default_retry_ms = 500


class PolicyUnavailable(RewardloopError):
    """The policy worker is not configured or does not answer."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "POLICY_UNAVAILABLE"
    default_retry_ms = 1000


class AuditUnavailable(RewardloopError):
    """The audit log cannot be written, so nothing is done that must be in it."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "AUDIT_UNAVAILABLE"
    default_retry_ms = 5000


class NoCredentials(RewardloopError):
    """Neither a bearer token nor a known client certificate came with the call."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "NO_CREDENTIALS"


class WrongCredentials(RewardloopError):
    """The bearer token is nobody's, or was taken back."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "WRONG_CREDENTIALS"


class ExpiredCredentials(RewardloopError):
    """The caller is known, but its credentials are past their time."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "EXPIRED_CREDENTIALS"


class NotAllowed(RewardloopError):
    """The caller is known and has no role that may call the method."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "NOT_ALLOWED"


class DeadlinePassed(RewardloopError):
    """The caller's deadline passed before the work was begun."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_PASSED"


class UnknownVersion(RewardloopError):
    """The store has no such version, or it is not served here."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_VERSION"


class UnknownGeneration(RewardloopError):
    """No generation is logged under that id, or it has expired."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_GENERATION"


class ReplayedSignal(RewardloopError):
    """The annotator has said that about this generation before, or has said as much about it as one may."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "REPLAYED_SIGNAL"


class VersionRefused(RewardloopError):
    """Base of the errors with which a stored version is refused when it is loaded."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class CorruptVersionError(VersionRefused):
    """A file of the version is missing or altered, or its manifest cannot be read."""

    reason = "CORRUPT_VERSION"


class UnsafeVersionError(VersionRefused):
    """The version holds a kind of file that no version may hold, or its graph asks for other files or operators."""

    reason = "UNSAFE_VERSION"


class UntrustedVersionError(VersionRefused):
    """The version's manifest is not signed with a key that this process trusts."""

    reason = "UNTRUSTED_VERSION"


class NotLoadable(VersionRefused):
    """The version's files are as published, but do not load or run."""

    reason = "NOT_LOADABLE"


class NothingToRollBack(RewardloopError):
    """No version was active before the present one."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_ROLL_BACK"


class Overtaken(RewardloopError):
    """A trainer that no longer leads asks."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "OVERTAKEN"


class InternalError(RewardloopError):
    """A bug: the caller is told no more than that, the log has all of it."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"

    def __init__(self) -> None:
        super().__init__("internal error; the server's log has the details")


def errors_of(base: type[RewardloopError] = RewardloopError) -> Sequence[type[RewardloopError]]:
    """Return the classes of the tree under ``base`` that a caller may see: those that are no base themselves."""
    children = base.__subclasses__()
    return [error for child in children for error in errors_of(child)] if children else [base]


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def status_name(code: Any) -> str:
    """A status code's name; grpc.aio's context holds it as an enum member or as its number."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((c.name for c in grpc.StatusCode if c.value[0] == code), "UNKNOWN")
