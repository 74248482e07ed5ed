"""Reads the rich status of a failed call."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error of an awaitable call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def reason_of(error: grpc.aio.AioRpcError | status_pb2.Status) -> str:
    """The ErrorInfo's reason in an error or a batch item."""
    status = error if isinstance(error, status_pb2.Status) else rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "rewardloop"
    return info.reason


def fields_of(error: grpc.aio.AioRpcError | status_pb2.Status) -> list[str]:
    """Paths of the fields that the error complains about."""
    status = error if isinstance(error, status_pb2.Status) else rpc_status.from_call(error)
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    return [violation.field for violation in bad.field_violations]


def retry_ms_of(error: grpc.aio.AioRpcError) -> int:
    """When the server asks to be tried again."""
    status = rpc_status.from_call(error)
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    return int(retry.retry_delay.ToMilliseconds())
