"""Addresses and the channels to them.

Several IP addresses share one channel, over which gRPC's own round_robin policy spreads calls and skips what is
down. Several host names get a channel each, and calls rotate over them: gRPC resolves one name a channel.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from typing import TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from rewardloop_client._access import Access
from rewardloop_client._errors import FailedCall, from_call
from rewardloop_client._retry import Send

M = TypeVar("M", bound=Message)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.enable_retries", 0),  # this package retries; gRPC's own retries would multiply the attempts
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Servers count pings that come sooner than every five minutes on an idle stream, and hang up after three.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC's default lets the pause between connection attempts grow to two minutes; a restarted server should
    # be found again within the pauses of a call's own retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.primary_user_agent", "rewardloop-client"),
)


class InvalidAddress(ValueError):
    """No address, or one that is not host:port."""


def targets(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """The gRPC targets to open, one channel each.

    ``addresses``: "host:port", "[v6]:port", a target with a scheme ("unix:/run/x.sock", "dns:///name:1"), a
    comma-separated list of host:port, or a sequence of any of these. Raises InvalidAddress.
    """
    given = [addresses] if isinstance(addresses, str) else list(addresses)
    split = [part.strip() for item in given for part in ([item] if _has_scheme(item) else item.split(","))]
    names = list(dict.fromkeys(name for name in split if name))
    if not names:
        raise InvalidAddress("no address was given")
    families = {_family(name) for name in names}
    if len(names) > 1 and families in ({"ipv4"}, {"ipv6"}):
        return (f"{families.pop()}:{','.join(names)}",)
    return tuple(names)


def _has_scheme(address: str) -> bool:
    return address.startswith(("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:"))


def _family(address: str) -> str:
    if _has_scheme(address):
        return "other"
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidAddress(f"{address!r} is not host:port")
    try:
        return f"ipv{ipaddress.ip_address(host.strip('[]')).version}"
    except ValueError:
        return "name"


class ChannelTransport:
    """Carries requests over gRPC channels, which open at the first call."""

    def __init__(
        self, addresses: str | Sequence[str], access: Access | None = None, *, is_traced: bool = False
    ) -> None:
        self._targets = targets(addresses)
        self._access = access or Access()
        self._access.check(self._targets)
        self._is_traced = is_traced
        self._lock = threading.Lock()
        self._channels: list[grpc.Channel] = []
        self._turn = itertools.count()

    def unary(self, send: Send) -> Message:
        """Raises RewardloopError."""
        method = self._channel().unary_unary(send.path, _to_bytes, send.response_type.FromString)
        try:
            return cast(Message, method(send.request, timeout=send.timeout_s, metadata=self._access.metadata()))
        except grpc.RpcError as failure:
            raise from_call(cast(FailedCall, failure)) from failure

    def stream(
        self, path: str, requests: Iterator[Message], response_type: type[M], timeout_s: float | None
    ) -> Generator[M, None, None]:
        """Replies as they come. The call is cancelled when the iterator is closed. Raises RewardloopError."""
        method = self._channel().stream_stream(path, _to_bytes, response_type.FromString)
        call = method(requests, timeout=timeout_s, metadata=self._access.metadata())
        try:
            yield from call
        except grpc.RpcError as failure:
            raise from_call(cast(FailedCall, failure)) from failure
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        with self._lock:
            for channel in self._channels:
                channel.close()
            self._channels.clear()

    def _channel(self) -> grpc.Channel:
        with self._lock:
            if not self._channels:
                channels = [self._access.open(target, OPTIONS) for target in self._targets]
                self._channels = [_traced(channel) for channel in channels] if self._is_traced else channels
            return self._channels[next(self._turn) % len(self._channels)]


class AioChannelTransport:
    """`ChannelTransport` for asyncio; channels belong to the loop of the first call."""

    def __init__(
        self, addresses: str | Sequence[str], access: Access | None = None, *, is_traced: bool = False
    ) -> None:
        self._targets = targets(addresses)
        self._access = access or Access()
        self._access.check(self._targets)
        self._is_traced = is_traced
        self._channels: list[grpc.aio.Channel] = []
        self._turn = itertools.count()

    async def unary(self, send: Send) -> Message:
        """Raises RewardloopError."""
        method = self._channel().unary_unary(send.path, _to_bytes, send.response_type.FromString)
        try:
            return cast(Message, await method(send.request, timeout=send.timeout_s, metadata=self._access.metadata()))
        except grpc.aio.AioRpcError as failure:
            raise from_call(cast(FailedCall, failure)) from failure

    async def stream(
        self, path: str, requests: AsyncIterator[Message], response_type: type[M], timeout_s: float | None
    ) -> AsyncGenerator[M, None]:
        """Replies as they come. The call is cancelled when the iterator is closed. Raises RewardloopError."""
        method = self._channel().stream_stream(path, _to_bytes, response_type.FromString)
        call = method(requests, timeout=timeout_s, metadata=self._access.metadata())
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as failure:
            raise from_call(cast(FailedCall, failure)) from failure
        finally:
            call.cancel()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        channels, self._channels = self._channels, []
        for channel in channels:
            await channel.close(None)

    def _channel(self) -> grpc.aio.Channel:
        if not self._channels:
            around = _aio_tracing() if self._is_traced else []
            self._channels = [self._access.open_aio(target, OPTIONS, around) for target in self._targets]
        return self._channels[next(self._turn) % len(self._channels)]


def _traced(channel: grpc.Channel) -> grpc.Channel:
    from rewardloop.formats.grpc_tracing import ClientTracing  # OpenTelemetry is not there unless tracing is on

    return grpc.intercept_channel(channel, ClientTracing())


def _aio_tracing() -> list[grpc.aio.ClientInterceptor]:
    from rewardloop.formats.grpc_tracing import aio_interceptors

    return aio_interceptors()


def _to_bytes(message: Message) -> bytes:
    return message.SerializeToString()
