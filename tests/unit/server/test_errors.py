"""Errors as they go out: a google.rpc.Status that a client can tell apart by reason."""

from __future__ import annotations

from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from rewardloop_server.calls import errors
from rewardloop_server.calls.errors import (
    InvalidRequest,
    NoModel,
    QueueFull,
    RewardloopError,
    UnknownVersion,
    Violation,
)

M = TypeVar("M", bound=Message)

CLASSES: list[Any] = [
    c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, RewardloopError) and hasattr(c, "reason")
]


def detail(status: status_pb2.Status, kind: type[M]) -> M | None:
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def test_reasons_are_those_of_the_contract() -> None:
    code = grpc.StatusCode
    assert {c.reason: c.code for c in CLASSES} == {
        "INVALID_REQUEST": code.INVALID_ARGUMENT,
        "QUEUE_FULL": code.RESOURCE_EXHAUSTED,
        "STORE_FULL": code.RESOURCE_EXHAUSTED,
        "TOO_MANY_SIGNALS": code.RESOURCE_EXHAUSTED,
        "EVENT_ID_CONFLICT": code.ALREADY_EXISTS,
        "REPLAYED_SIGNAL": code.ALREADY_EXISTS,
        "QUOTA_SPENT": code.RESOURCE_EXHAUSTED,
        "FLOORS_NOT_MET": code.FAILED_PRECONDITION,
        "AUDIT_UNAVAILABLE": code.UNAVAILABLE,
        "NO_CREDENTIALS": code.UNAUTHENTICATED,
        "WRONG_CREDENTIALS": code.UNAUTHENTICATED,
        "EXPIRED_CREDENTIALS": code.UNAUTHENTICATED,
        "NOT_ALLOWED": code.PERMISSION_DENIED,
        "NO_MODEL": code.UNAVAILABLE,
        "ENGINE_STUCK": code.UNAVAILABLE,
        "DRAINING": code.UNAVAILABLE,
        "REDIS_UNAVAILABLE": code.UNAVAILABLE,
        "POLICY_UNAVAILABLE": code.UNAVAILABLE,
        "DEADLINE_PASSED": code.DEADLINE_EXCEEDED,
        "UNKNOWN_VERSION": code.NOT_FOUND,
        "UNKNOWN_GENERATION": code.NOT_FOUND,
        "UNKNOWN_ERASURE": code.NOT_FOUND,
        "UNKNOWN_PROJECT": code.NOT_FOUND,
        "UNKNOWN_LEASE": code.NOT_FOUND,
        "UNKNOWN_GUIDELINES": code.NOT_FOUND,
        "LEASE_ANSWERED": code.ALREADY_EXISTS,
        "TASK_TAKEN": code.FAILED_PRECONDITION,
        "TASK_RETRACTED": code.FAILED_PRECONDITION,
        "NOTHING_TO_UNDO": code.FAILED_PRECONDITION,
        "CORRUPT_VERSION": code.FAILED_PRECONDITION,
        "UNSAFE_VERSION": code.FAILED_PRECONDITION,
        "UNTRUSTED_VERSION": code.FAILED_PRECONDITION,
        "NOT_LOADABLE": code.FAILED_PRECONDITION,
        "NOTHING_TO_ROLL_BACK": code.FAILED_PRECONDITION,
        "OVERTAKEN": code.FAILED_PRECONDITION,
        "POINTER_MOVED": code.FAILED_PRECONDITION,
        "PROMOTION_HELD": code.FAILED_PRECONDITION,
        "REPORTS_UNAVAILABLE": code.UNAVAILABLE,
        "UNKNOWN_ITEM": code.NOT_FOUND,
        "NO_EVENT": code.FAILED_PRECONDITION,
        "INTERNAL": code.INTERNAL,
    }


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda c: c.reason)
def test_status_names_the_reason_and_whether_to_retry(error_class: Any) -> None:
    if error_class is InvalidRequest:
        error = InvalidRequest([Violation("prompt", "empty")])
    elif error_class is errors.InternalError:
        error = error_class()
    else:
        error = error_class("why")
    status = error.to_status()
    assert status.code == error_class.code.value[0]
    info = detail(status, error_details_pb2.ErrorInfo)
    assert info is not None
    assert (info.reason, info.domain) == (error_class.reason, "rewardloop")
    may_retry = error_class.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert (detail(status, error_details_pb2.RetryInfo) is not None) == may_retry


def test_violations_become_a_bad_request() -> None:
    status = InvalidRequest([Violation("prompt.text", "empty"), Violation("responses", "none")]).to_status()
    bad = detail(status, error_details_pb2.BadRequest)
    assert bad is not None
    assert [(v.field, v.description) for v in bad.field_violations] == [("prompt.text", "empty"), ("responses", "none")]
    assert status.message == "prompt.text: empty (and 1 more)"


def test_retry_time_is_kept_to_the_millisecond() -> None:
    retry = detail(NoModel("none", retry_after_ms=1234).to_status(), error_details_pb2.RetryInfo)
    assert retry is not None
    assert retry.retry_delay.ToMilliseconds() == 1234


def test_pushback_goes_with_resource_exhausted_alone() -> None:
    assert dict(QueueFull("full", retry_after_ms=70).trailing_metadata())["grpc-retry-pushback-ms"] == "70"
    assert "grpc-retry-pushback-ms" not in dict(NoModel("none").trailing_metadata())


def test_long_texts_and_lists_are_cut() -> None:
    many = InvalidRequest([Violation(f"responses[{i}]" * 40, "x" * 1000) for i in range(10_000)])
    assert len(many.to_status().SerializeToString()) < 6000
    assert len(UnknownVersion("7" * 1_000_000).to_status().SerializeToString()) < 1000
