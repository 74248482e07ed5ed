"""Errors that callers see, each with its gRPC code and its reason.

RewardloopError
├── InvalidRequest          INVALID_ARGUMENT      INVALID_REQUEST, with every violation
├── QueueFull               RESOURCE_EXHAUSTED    QUEUE_FULL
├── StoreFull               RESOURCE_EXHAUSTED    STORE_FULL
├── TooManySignals          RESOURCE_EXHAUSTED    TOO_MANY_SIGNALS
├── QuotaSpent              RESOURCE_EXHAUSTED    QUOTA_SPENT
├── NoModel                 UNAVAILABLE           NO_MODEL
├── EngineStuck             UNAVAILABLE           ENGINE_STUCK
├── Draining                UNAVAILABLE           DRAINING
├── RedisUnavailable        UNAVAILABLE           REDIS_UNAVAILABLE
├── PolicyUnavailable       UNAVAILABLE           POLICY_UNAVAILABLE
├── AuditUnavailable        UNAVAILABLE           AUDIT_UNAVAILABLE
├── ReportsUnavailable      UNAVAILABLE           REPORTS_UNAVAILABLE
├── NoCredentials           UNAUTHENTICATED       NO_CREDENTIALS
├── WrongCredentials        UNAUTHENTICATED       WRONG_CREDENTIALS
├── ExpiredCredentials      UNAUTHENTICATED       EXPIRED_CREDENTIALS
├── NotAllowed              PERMISSION_DENIED     NOT_ALLOWED
├── DeadlinePassed          DEADLINE_EXCEEDED     DEADLINE_PASSED
├── UnknownVersion          NOT_FOUND             UNKNOWN_VERSION
├── UnknownGeneration       NOT_FOUND             UNKNOWN_GENERATION
├── UnknownItem             NOT_FOUND             UNKNOWN_ITEM
├── UnknownProject          NOT_FOUND             UNKNOWN_PROJECT
├── UnknownLease            NOT_FOUND             UNKNOWN_LEASE
├── UnknownGuidelines       NOT_FOUND             UNKNOWN_GUIDELINES
├── EventIdConflict         ALREADY_EXISTS        EVENT_ID_CONFLICT
├── ReplayedSignal          ALREADY_EXISTS        REPLAYED_SIGNAL
├── LeaseAnswered           ALREADY_EXISTS        LEASE_ANSWERED
├── VersionRefused          base of
│   ├── CorruptVersionError   FAILED_PRECONDITION   CORRUPT_VERSION
│   ├── UnsafeVersionError    FAILED_PRECONDITION   UNSAFE_VERSION
│   ├── UntrustedVersionError FAILED_PRECONDITION   UNTRUSTED_VERSION
│   └── NotLoadable           FAILED_PRECONDITION   NOT_LOADABLE
├── NothingToRollBack       FAILED_PRECONDITION   NOTHING_TO_ROLL_BACK
├── Overtaken               FAILED_PRECONDITION   OVERTAKEN
├── PointerMoved            FAILED_PRECONDITION   POINTER_MOVED
├── PromotionHeld           FAILED_PRECONDITION   PROMOTION_HELD
├── FloorsNotMet            FAILED_PRECONDITION   FLOORS_NOT_MET
├── NoEvent                 FAILED_PRECONDITION   NO_EVENT
├── TaskTaken               FAILED_PRECONDITION   TASK_TAKEN
├── TaskRetracted           FAILED_PRECONDITION   TASK_RETRACTED
├── NothingToUndo           FAILED_PRECONDITION   NOTHING_TO_UNDO
└── InternalError           INTERNAL              INTERNAL

A message goes to the caller. It names fields, limits and versions, and never quotes a prompt or a response.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from rewardloop_server.calls.error_status import RewardloopError as RewardloopError
from rewardloop_server.calls.error_status import Violation as Violation
from rewardloop_server.calls.error_status import status_name as status_name


class InvalidRequest(RewardloopError):
    """Raised when a request breaks the contract. It carries every violation that was found, at least one."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        where = f"{first.field}: " if first.field else ""
        super().__init__(f"{where}{first.description}{more}", violations=violations)


class QueueFull(RewardloopError):
    """Raised when a lane's queue has no room for the request."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"
    default_retry_ms = 100


class StoreFull(RewardloopError):
    """Raised when Redis is at its memory limit, where it evicts nothing and refuses writes, or the spool is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "STORE_FULL"
    default_retry_ms = 5000


class TooManySignals(RewardloopError):
    """Raised when an annotator or a caller has sent as many signals as are allowed in a minute or a day."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_SIGNALS"
    default_retry_ms = 60_000


class QuotaSpent(RewardloopError):
    """Raised when a caller has used up its quota. Other callers are served."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUOTA_SPENT"
    default_retry_ms = 100


class NoModel(RewardloopError):
    """Raised when no version of the model is warm in this process."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "NO_MODEL"
    default_retry_ms = 500


class EngineStuck(RewardloopError):
    """Raised while a run does not end, or the model fails on everything. Another replica may answer."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "ENGINE_STUCK"
    default_retry_ms = 1000


class Draining(RewardloopError):
    """Raised when the process is shutting down. Another replica may answer."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"
    default_retry_ms = 500


class RedisUnavailable(RewardloopError):
    """Raised when Redis does not answer, or is still loading its data. A write may or may not have happened."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "REDIS_UNAVAILABLE"
    default_retry_ms = 500


class PolicyUnavailable(RewardloopError):
    """Raised when no policy worker is configured, or it does not answer."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "POLICY_UNAVAILABLE"
    default_retry_ms = 1000


class AuditUnavailable(RewardloopError):
    """Raised when the audit log cannot be written. Then nothing is done that must be recorded there."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "AUDIT_UNAVAILABLE"
    default_retry_ms = 5000


class ReportsUnavailable(RewardloopError):
    """Raised when the model store cannot be read for reports."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "REPORTS_UNAVAILABLE"
    default_retry_ms = 1000


class NoCredentials(RewardloopError):
    """Raised when a call comes with neither a bearer token nor a known client certificate."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "NO_CREDENTIALS"


class WrongCredentials(RewardloopError):
    """Raised when no caller has the bearer token, or it was taken back."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "WRONG_CREDENTIALS"


class ExpiredCredentials(RewardloopError):
    """Raised when a known caller's credentials have expired."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "EXPIRED_CREDENTIALS"


class NotAllowed(RewardloopError):
    """Raised when a known caller has no role that may call the method."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "NOT_ALLOWED"


class DeadlinePassed(RewardloopError):
    """Raised when the caller's deadline has passed, or would pass before the work that is ahead is done."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_PASSED"


class UnknownVersion(RewardloopError):
    """Raised when the store does not have the version, or this process does not serve it."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_VERSION"


class UnknownGeneration(RewardloopError):
    """Raised when no generation is logged under the id, or it has expired."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_GENERATION"


class UnknownErasure(RewardloopError):
    """Raised when no erasure has the erasure_id."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_ERASURE"


class UnknownItem(RewardloopError):
    """Raised when there is no such round, dead letter or report."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_ITEM"


class NoEvent(RewardloopError):
    """Raised when a dead letter has no event that could be put back into the stream."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NO_EVENT"


class EventIdConflict(RewardloopError):
    """Raised when a caller has recorded a signal with other content under the same event_id."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "EVENT_ID_CONFLICT"


class ReplayedSignal(RewardloopError):
    """Raised when an annotator repeats a signal about a generation, or has sent the most allowed about it."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "REPLAYED_SIGNAL"


class VersionRefused(RewardloopError):
    """Base of the errors that are raised when a stored version is not taken."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class CorruptVersionError(VersionRefused):
    """Raised when a file of the version is missing or altered, or its manifest cannot be read."""

    reason = "CORRUPT_VERSION"


class UnsafeVersionError(VersionRefused):
    """Raised when a version holds a forbidden kind of file, or its graph asks for foreign files or operators."""

    reason = "UNSAFE_VERSION"


class UntrustedVersionError(VersionRefused):
    """Raised when the version's manifest is not signed with a key that this process trusts."""

    reason = "UNTRUSTED_VERSION"


class NotLoadable(VersionRefused):
    """Raised when the version's files are as published but do not load or run."""

    reason = "NOT_LOADABLE"


def told(error: Exception) -> str:
    """Return what a caller may read of an error that a version caused.

    Our own errors tell what they say. Of an error of ONNX Runtime or of another library only the class is told: its
    text changes with the library's release, and may name files of this machine. Raise from it, so that the log has it.
    """
    if type(error).__module__.startswith("rewardloop"):
        return str(error)
    return f"{type(error).__name__}, whose text is in the server's log"


class NothingToRollBack(RewardloopError):
    """Raised when a rollback is asked for and no version was active before the present one."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_ROLL_BACK"


class Overtaken(RewardloopError):
    """Raised when a trainer that has lost leadership sends a request."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "OVERTAKEN"


class PointerMoved(RewardloopError):
    """Raised when another version is active than the caller expected."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "POINTER_MOVED"


class PromotionHeld(RewardloopError):
    """Raised when a leading trainer promotes a version after a person rolled back."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "PROMOTION_HELD"


class FloorsNotMet(RewardloopError):
    """Raised when fewer of the sampled candidates are at or above a mixture's floors than are to be returned."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FLOORS_NOT_MET"


class UnknownProject(RewardloopError):
    """Raised when there is no labelling project of that name."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_PROJECT"


class UnknownLease(RewardloopError):
    """Raised when the labeller has no such lease of a task."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_LEASE"


class UnknownGuidelines(RewardloopError):
    """Raised when a project has no guidelines of that version."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_GUIDELINES"


class LeaseAnswered(RewardloopError):
    """Raised when another answer was recorded under the lease."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "LEASE_ANSWERED"


class TaskTaken(RewardloopError):
    """Raised when an answer comes after its lease has ended, and others have the task now."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "TASK_TAKEN"


class TaskRetracted(RewardloopError):
    """Raised when an answer comes after its task was taken back."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "TASK_RETRACTED"


class NothingToUndo(RewardloopError):
    """Raised when a labeller has no answer to take back."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_UNDO"


class InternalError(RewardloopError):
    """Raised for a bug. The caller learns no more than that; the details are in the log."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"

    def __init__(self) -> None:
        super().__init__("internal error; the server's log has the details")


def errors_of(base: type[RewardloopError] = RewardloopError) -> Sequence[type[RewardloopError]]:
    """Return the classes of the tree under ``base`` that a caller may see: those that are no base themselves."""
    children = base.__subclasses__()
    return [error for child in children for error in errors_of(child)] if children else [base]
