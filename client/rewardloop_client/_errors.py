"""The exceptions of failed calls, and how a gRPC status becomes one.

RewardloopError
├── InvalidRequest          INVALID_REQUEST       .violations names the fields
├── MessageTooLarge         gRPC refused the message before any service saw it
├── Overloaded              RESOURCE_EXHAUSTED without a reason from the server
│   ├── QueueFull           QUEUE_FULL            .retry_after_s
│   ├── StoreFull           STORE_FULL
│   ├── TooManySignals      TOO_MANY_SIGNALS      the bound of this annotator or caller in a minute or a day is reached
│   └── QuotaSpent          QUOTA_SPENT           this caller's quota is used up for now
├── Unavailable             UNAVAILABLE
│   ├── Unreachable         no server answered at the address, or the connection broke
│   ├── NoModel             NO_MODEL
│   ├── EngineStuck         ENGINE_STUCK          a run of the reward model does not end on that server
│   ├── Draining            DRAINING
│   ├── RedisUnavailable    REDIS_UNAVAILABLE
│   ├── PolicyUnavailable   POLICY_UNAVAILABLE
│   ├── AuditUnavailable    AUDIT_UNAVAILABLE
│   └── ReportsUnavailable  REPORTS_UNAVAILABLE
├── DeadlineExceeded        the time given to the call ran out
│   └── DeadlinePassed      DEADLINE_PASSED       the time ran out in the server's queue, before the work began
├── NotFound                NOT_FOUND
│   ├── UnknownVersion      UNKNOWN_VERSION
│   ├── UnknownGeneration   UNKNOWN_GENERATION
│   ├── UnknownItem         UNKNOWN_ITEM          no such round, dead letter or report
│   ├── UnknownProject      UNKNOWN_PROJECT
│   ├── UnknownLease        UNKNOWN_LEASE         this labeller has no such lease of a task
│   └── UnknownGuidelines   UNKNOWN_GUIDELINES
├── AlreadyExists           ALREADY_EXISTS
│   ├── EventIdConflict     EVENT_ID_CONFLICT     this caller recorded another signal under this event_id
│   ├── ReplayedSignal      REPLAYED_SIGNAL       this annotator gave this signal about this generation before
│   └── LeaseAnswered       LEASE_ANSWERED        another answer was recorded under this lease
├── FailedPrecondition      FAILED_PRECONDITION
│   ├── CorruptVersion      CORRUPT_VERSION
│   ├── NothingToRollBack   NOTHING_TO_ROLL_BACK
│   ├── Overtaken           OVERTAKEN
│   ├── PointerMoved        POINTER_MOVED         another version is active than the caller expected
│   ├── PromotionHeld       PROMOTION_HELD        a rollback holds the promotions of trainers
│   ├── FloorsNotMet        FLOORS_NOT_MET        too few candidates are at or above a mixture's floors
│   ├── NoEvent             NO_EVENT              a dead letter has no event to put back
│   ├── TaskTaken           TASK_TAKEN            the lease has ended, and others have the task now
│   ├── TaskRetracted       TASK_RETRACTED        the task was taken back
│   ├── NothingToUndo       NOTHING_TO_UNDO       this labeller has no answer to take back
│   ├── UnsafeVersion       UNSAFE_VERSION
│   ├── UntrustedVersion    UNTRUSTED_VERSION
│   └── NotLoadable         NOT_LOADABLE
├── Unauthenticated         UNAUTHENTICATED
│   ├── NoCredentials       NO_CREDENTIALS
│   ├── WrongCredentials    WRONG_CREDENTIALS
│   └── ExpiredCredentials  EXPIRED_CREDENTIALS
├── PermissionDenied        PERMISSION_DENIED
│   └── NotAllowed          NOT_ALLOWED           no role of the caller allows this method
├── Cancelled               CANCELLED             the server, or closing the client, ended the call
├── Unimplemented           UNIMPLEMENTED         the server does not have this method
└── InternalError           INTERNAL and everything else
    └── InvalidReply        the server's reply breaks the contract, such as a score that is no number
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "rewardloop"

_STATUS_DETAILS = "grpc-status-details-bin"
_PUSHBACK = "grpc-retry-pushback-ms"
# gRPC's text for a call whose own channel is closed.
_CLOSED_HERE = "Channel closed!"


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that breaks a rule. ``field`` is its path, such as ``responses[2]``."""

    field: str
    description: str


class RewardloopError(Exception):
    """Base of every exception that this package raises for a failed call.

    Attributes:
        message: What went wrong.
        code: The gRPC code.
        reason: The reason in the server's ErrorInfo; empty if the failure did not come from the server.
        retry_after_s: Seconds that the server asks to wait before another attempt; None if it says nothing.
        violations: The fields that broke a rule.
        retryable: Whether a call that failed so may succeed later.
        may_retry: `retryable`, unless this very failure forbids another attempt.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    reason: str = ""
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        retry_after_s: float | None = None,
        violations: Iterable[Violation] = (),
        refuses_retry: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.reason = type(self).reason if reason is None else reason
        self.retry_after_s = retry_after_s
        self.violations = tuple(violations)
        self.may_retry = type(self).retryable and not refuses_retry

    def __str__(self) -> str:
        # The server's message names the first violation, and a violation's own text may be cut.
        named = (f"{v.field}: {v.description}" for v in self.violations)
        more = "; ".join(text for text in named if text.removesuffix("…") not in self.message)
        return f"{self.message} ({more})" if more else self.message


class InvalidRequest(RewardloopError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class MessageTooLarge(RewardloopError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Overloaded(RewardloopError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True


class QueueFull(Overloaded):
    reason = "QUEUE_FULL"


class StoreFull(Overloaded):
    reason = "STORE_FULL"


class TooManySignals(Overloaded):
    reason = "TOO_MANY_SIGNALS"


class QuotaSpent(Overloaded):
    reason = "QUOTA_SPENT"


class Unavailable(RewardloopError):
    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class Unreachable(Unavailable):
    pass


class NoModel(Unavailable):
    reason = "NO_MODEL"


class EngineStuck(Unavailable):
    reason = "ENGINE_STUCK"


class Draining(Unavailable):
    reason = "DRAINING"


class RedisUnavailable(Unavailable):
    reason = "REDIS_UNAVAILABLE"


class PolicyUnavailable(Unavailable):
    reason = "POLICY_UNAVAILABLE"


class AuditUnavailable(Unavailable):
    reason = "AUDIT_UNAVAILABLE"


class ReportsUnavailable(Unavailable):
    reason = "REPORTS_UNAVAILABLE"


class DeadlineExceeded(RewardloopError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class DeadlinePassed(DeadlineExceeded):
    reason = "DEADLINE_PASSED"


class NotFound(RewardloopError):
    code = grpc.StatusCode.NOT_FOUND


class UnknownVersion(NotFound):
    reason = "UNKNOWN_VERSION"


class UnknownGeneration(NotFound):
    reason = "UNKNOWN_GENERATION"


class UnknownErasure(NotFound):
    reason = "UNKNOWN_ERASURE"


class UnknownItem(NotFound):
    reason = "UNKNOWN_ITEM"


class UnknownProject(NotFound):
    reason = "UNKNOWN_PROJECT"


class UnknownLease(NotFound):
    reason = "UNKNOWN_LEASE"


class UnknownGuidelines(NotFound):
    reason = "UNKNOWN_GUIDELINES"


class AlreadyExists(RewardloopError):
    code = grpc.StatusCode.ALREADY_EXISTS


class EventIdConflict(AlreadyExists):
    reason = "EVENT_ID_CONFLICT"


class ReplayedSignal(AlreadyExists):
    reason = "REPLAYED_SIGNAL"


class LeaseAnswered(AlreadyExists):
    reason = "LEASE_ANSWERED"


class FailedPrecondition(RewardloopError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class CorruptVersion(FailedPrecondition):
    reason = "CORRUPT_VERSION"


class NothingToRollBack(FailedPrecondition):
    reason = "NOTHING_TO_ROLL_BACK"


class Overtaken(FailedPrecondition):
    reason = "OVERTAKEN"


class PointerMoved(FailedPrecondition):
    reason = "POINTER_MOVED"


class PromotionHeld(FailedPrecondition):
    reason = "PROMOTION_HELD"


class FloorsNotMet(FailedPrecondition):
    reason = "FLOORS_NOT_MET"


class NoEvent(FailedPrecondition):
    reason = "NO_EVENT"


class TaskTaken(FailedPrecondition):
    reason = "TASK_TAKEN"


class TaskRetracted(FailedPrecondition):
    reason = "TASK_RETRACTED"


class NothingToUndo(FailedPrecondition):
    reason = "NOTHING_TO_UNDO"


class UnsafeVersion(FailedPrecondition):
    reason = "UNSAFE_VERSION"


class UntrustedVersion(FailedPrecondition):
    reason = "UNTRUSTED_VERSION"


class NotLoadable(FailedPrecondition):
    reason = "NOT_LOADABLE"


class Unauthenticated(RewardloopError):
    code = grpc.StatusCode.UNAUTHENTICATED


class NoCredentials(Unauthenticated):
    reason = "NO_CREDENTIALS"


class WrongCredentials(Unauthenticated):
    reason = "WRONG_CREDENTIALS"


class ExpiredCredentials(Unauthenticated):
    reason = "EXPIRED_CREDENTIALS"


class PermissionDenied(RewardloopError):
    code = grpc.StatusCode.PERMISSION_DENIED


class NotAllowed(PermissionDenied):
    reason = "NOT_ALLOWED"


class Cancelled(RewardloopError):
    """A server that shuts down cancels calls that reach it too late, before any of its code has seen them."""

    code = grpc.StatusCode.CANCELLED
    retryable = True


class Unimplemented(RewardloopError):
    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(RewardloopError):
    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


class InvalidReply(InternalError):
    """Raised by the client itself, so no server sends a reason for it."""

    reason = ""


def _tree(root: type[RewardloopError]) -> Iterator[type[RewardloopError]]:
    for child in root.__subclasses__():
        yield child
        yield from _tree(child)


_BY_REASON = {kind.reason: kind for kind in _tree(RewardloopError) if kind.reason}
_BY_CODE: dict[grpc.StatusCode, type[RewardloopError]] = {
    kind.code: kind for kind in RewardloopError.__subclasses__() if kind is not MessageTooLarge
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class FailedCall(Protocol):
    """The methods of a failed call's `grpc.RpcError`, which the blocking and the asyncio API share."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def from_status(status: status_pb2.Status) -> RewardloopError:
    """Return the exception for one failed item of a batch or stream."""
    return _from_parts(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status.details)


def from_call(call: FailedCall) -> RewardloopError:
    """Return the exception for a failed call, with the details of the rich status in its trailers, if there is one."""
    trailers = {str(key): value for key, value in call.trailing_metadata() or ()}
    packed = trailers.get(_STATUS_DETAILS)
    status = status_pb2.Status()
    if isinstance(packed, bytes):
        try:
            status.ParseFromString(packed)
        except DecodeError as undecodable:
            return InternalError(f"the server sent an unreadable status: {undecodable}", code=call.code())
    return _from_parts(call.code(), call.details() or "", status.details, pushback=trailers.get(_PUSHBACK))


def to_status(error: RewardloopError) -> status_pb2.Status:
    """Return the status that a server would send for this error. It is the inverse of `from_status`."""
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        status.details.add().Pack(bad)
    if error.retry_after_s is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(info)
    return status


def _from_parts(
    code: grpc.StatusCode, message: str, details: Iterable[object], *, pushback: str | bytes | None = None
) -> RewardloopError:
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    retry_after_s: float | None = None
    for detail in details:
        for target in (info, retry, bad):
            detail.Unpack(target)  # type: ignore[attr-defined]
    if retry.HasField("retry_delay"):
        retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    refuses_retry = False
    if pushback is not None:
        # By gRPC's rule a negative or unparseable pushback forbids a retry.
        text = pushback.decode("ascii", "replace") if isinstance(pushback, bytes) else pushback
        refuses_retry = not text.isascii() or not text.isdigit()
        if not refuses_retry and retry_after_s is None:
            retry_after_s = int(text) / 1000
    if code is grpc.StatusCode.CANCELLED and message == _CLOSED_HERE:
        refuses_retry = True
    kind = _BY_REASON.get(info.reason) if info.domain == DOMAIN else None
    if kind is None:
        kind = _kind_without_reason(code, message)
    return kind(
        message or f"the call failed with {code.name} and no text",
        code=code,
        reason=info.reason if info.domain == DOMAIN else "",
        retry_after_s=retry_after_s,
        violations=tuple(Violation(v.field, v.description) for v in bad.field_violations),
        refuses_retry=refuses_retry,
    )


def _kind_without_reason(code: grpc.StatusCode, message: str) -> type[RewardloopError]:
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unreachable
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        return MessageTooLarge
    return _BY_CODE.get(code, InternalError)
