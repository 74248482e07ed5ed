"""Carries out steps over gRPC channels, blocking and for asyncio."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from rewardloop_client._access import Access
from rewardloop_client._call_rules import CallRules
from rewardloop_client._connection import Connection, channel_options, intercepted, targets
from rewardloop_client._errors import Cancelled, Draining, FailedCall, RewardloopError, Unreachable, from_call
from rewardloop_client._hedge import Hedger, Hedging
from rewardloop_client._observe import observing
from rewardloop_client._retry import Send

M = TypeVar("M", bound=Message)

# gRPC itself waits this long before it connects again.
_SHUNNED_S = 1.0


class _Routing:
    """Decides for both transports which channel carries a call, and which calls are hedged.

    Channels of different targets alternate, so that the channel after a call's own leads to another server. A channel
    whose server was away a moment ago is passed over. If calls may be hedged, each address has a channel of its own;
    over the addresses of one name, the next pick of round_robin is mostly another server.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        access: Access,
        connection: Connection | None,
        rules: CallRules,
        hedging: Hedging | None,
        interceptors: Sequence[Any],
    ) -> None:
        connection = connection or Connection()
        self.access = access
        self.hedger = None if hedging is None else Hedger(hedging)
        self.targets = targets(addresses, apart=hedging is not None) * connection.channels
        access.check(self.targets)
        self.options = channel_options(connection, rules.policy)
        self.observer = rules.observer
        self.interceptors = interceptors
        self._turn = itertools.count()
        self._shunned_until = [0.0] * len(self.targets)

    def next(self) -> int:
        return self._from(next(self._turn))

    def after(self, index: int) -> int:
        """Return another channel than that one if there are several."""
        return self._from(index + 1)

    def _from(self, turn: int) -> int:
        count, now = len(self.targets), time.monotonic()
        for index in range(turn, turn + count):
            if self._shunned_until[index % count] <= now:
                return index % count
        return turn % count

    def error_of(self, failure: FailedCall, index: int) -> RewardloopError:
        """Return the error of a call over that channel. Calls then avoid a server that is away or shuts down."""
        error = from_call(failure)
        if isinstance(error, Unreachable | Draining):
            self._shunned_until[index] = time.monotonic() + _SHUNNED_S
        return error

    def hedge_delay_s(self, send: Send) -> float | None:
        return self.hedger.begin() if self.hedger is not None and send.may_hedge else None

    def may_send_again(self, send: Send) -> bool:
        """Return whether a second request may be sent now, and count it."""
        if self.hedger is None or not self.hedger.spend():
            return False
        if send.on_hedge is not None:
            send.on_hedge()
        return True

    def took(self, send: Send, seconds: float) -> None:
        if self.hedger is not None and send.may_hedge:
            self.hedger.took(seconds)


def _left(send: Send, waited_s: float) -> float | None:
    return None if send.timeout_s is None else max(0.0, send.timeout_s - waited_s)


class ChannelTransport:
    """Carries requests over gRPC channels, which are opened at the first call."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        access: Access,
        connection: Connection | None,
        rules: CallRules,
        hedging: Hedging | None,
        interceptors: Sequence[Any],
    ) -> None:
        self._routing = _Routing(addresses, access, connection, rules, hedging, interceptors)
        self._lock = threading.Lock()
        self._channels: list[grpc.Channel] = []

    def unary(self, send: Send) -> Message:
        """Raises RewardloopError."""
        index, delay_s = self._routing.next(), self._routing.hedge_delay_s(send)
        started = time.monotonic()
        try:
            if delay_s is not None:
                return self._hedged(send, index, delay_s)
            method = self._method(send, index)
            return cast(Message, method(send.request, timeout=send.timeout_s, metadata=self._routing.access.metadata()))
        except grpc.RpcError as failure:
            raise self._routing.error_of(cast(FailedCall, failure), index) from failure
        except grpc.FutureCancelledError as closed:
            raise Cancelled("the client was closed", refuses_retry=True) from closed
        finally:
            self._routing.took(send, time.monotonic() - started)

    def _hedged(self, send: Send, index: int, delay_s: float) -> Message:
        """Return the first answer of at most two calls. If both fail, raise the error of the first."""
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        metadata = self._routing.access.metadata()
        calls = [self._method(send, index).future(send.request, timeout=send.timeout_s, metadata=metadata)]
        calls[0].add_done_callback(ended.put)
        try:
            try:
                ended.get(timeout=delay_s)
            except queue.Empty:
                if self._routing.may_send_again(send):
                    method = self._method(send, self._routing.after(index))
                    calls.append(method.future(send.request, timeout=_left(send, delay_s), metadata=metadata))
                    calls[1].add_done_callback(ended.put)
                for _ in calls:
                    call = ended.get()
                    if not call.cancelled() and call.exception() is None:
                        return cast(Message, call.result())
            return cast(Message, calls[0].result())
        finally:
            for call in calls:
                call.cancel()

    def stream(
        self, path: str, requests: Iterator[Message], response_type: type[M], timeout_s: float | None
    ) -> Generator[M, None, None]:
        """Yield replies as they arrive. Closing the iterator cancels the call. Raises RewardloopError."""
        method = self._channel(self._routing.next()).stream_stream(path, _to_bytes, response_type.FromString)
        call = method(requests, timeout=timeout_s, metadata=self._routing.access.metadata())
        with observing(path, self._routing.observer):
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

    def _method(self, send: Send, index: int) -> Any:
        return self._channel(index).unary_unary(send.path, _to_bytes, send.response_type.FromString)

    def _channel(self, index: int) -> grpc.Channel:
        routing = self._routing
        with self._lock:
            if not self._channels:
                channels = [routing.access.open(target, routing.options) for target in routing.targets]
                self._channels = [intercepted(channel, routing.interceptors) for channel in channels]
            return self._channels[index % len(self._channels)]


class AioChannelTransport:
    """`ChannelTransport` for asyncio. Its channels belong to the event loop of the first call."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        access: Access,
        connection: Connection | None,
        rules: CallRules,
        hedging: Hedging | None,
        interceptors: Sequence[Any],
    ) -> None:
        self._routing = _Routing(addresses, access, connection, rules, hedging, interceptors)
        self._channels: list[grpc.aio.Channel] = []

    async def unary(self, send: Send) -> Message:
        """Raises RewardloopError."""
        index, delay_s = self._routing.next(), self._routing.hedge_delay_s(send)
        started = time.monotonic()
        try:
            if delay_s is not None:
                return await self._hedged(send, index, delay_s)
            return await self._call(send, index, send.timeout_s)
        except grpc.aio.AioRpcError as failure:
            raise self._routing.error_of(cast(FailedCall, failure), index) from failure
        finally:
            self._routing.took(send, time.monotonic() - started)

    async def _hedged(self, send: Send, index: int, delay_s: float) -> Message:
        """Return the first answer of at most two calls. If both fail, raise the error of the first."""
        calls = [asyncio.create_task(self._call(send, index, send.timeout_s))]
        try:
            await asyncio.wait(calls, timeout=delay_s)
            if not calls[0].done():
                if self._routing.may_send_again(send):
                    again = self._call(send, self._routing.after(index), _left(send, delay_s))
                    calls.append(asyncio.create_task(again))
                waiting = set(calls)
                while waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for call in done:
                        if not call.cancelled() and call.exception() is None:
                            return call.result()
            return await calls[0]
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _call(self, send: Send, index: int, timeout_s: float | None) -> Message:
        method = self._channel(index).unary_unary(send.path, _to_bytes, send.response_type.FromString)
        return cast(Message, await method(send.request, timeout=timeout_s, metadata=self._routing.access.metadata()))

    async def stream(
        self, path: str, requests: AsyncIterator[Message], response_type: type[M], timeout_s: float | None
    ) -> AsyncGenerator[M, None]:
        """Yield replies as they arrive. Closing the iterator cancels the call. Raises RewardloopError."""
        method = self._channel(self._routing.next()).stream_stream(path, _to_bytes, response_type.FromString)
        call = method(requests, timeout=timeout_s, metadata=self._routing.access.metadata())
        with observing(path, self._routing.observer):
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

    def _channel(self, index: int) -> grpc.aio.Channel:
        routing = self._routing
        if not self._channels:
            self._channels = [
                routing.access.open_aio(target, routing.options, routing.interceptors) for target in routing.targets
            ]
        return self._channels[index % len(self._channels)]


def _to_bytes(message: Message) -> bytes:
    return message.SerializeToString()
