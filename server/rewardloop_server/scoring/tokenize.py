"""tokenize: turns prompts and responses into ids, in threads of its own."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from rewardloop.formats.text import Encoded, Encoder, RefusedConversation, turns
from rewardloop.v1 import reward_pb2
from rewardloop_server.calls.errors import InvalidRequest, Violation

# A single request of up to this many bytes is tokenized on the event loop if no other waits. 360 bytes, which are 64
# tokens, took 44 microseconds (word level, 2 cores), and a hop to a thread and back 73 (99 of CPU time).
_INLINE_BYTES = 512

# Most bytes of text that go to a thread at once, so that the threads share a flood and no request waits long.
_JOB_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class _Pending:
    encoder: Encoder
    request: reward_pb2.ScoreRequest
    outcome: asyncio.Future[list[Encoded]]


_Outcome: TypeAlias = list[Encoded] | Exception


class TokenizePool:
    """Tokenizes in ``threads`` threads; the tokenizer releases the interpreter lock while it works.

    It is work-conserving: requests that come while all threads are busy go to the next free thread together.
    """

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._idle = threads
        self._pending: deque[_Pending] = deque()

    @property
    def waiting(self) -> int:
        """How many requests no thread has taken yet."""
        return len(self._pending)

    async def encode(
        self, encoder: Encoder, request: reward_pb2.ScoreRequest, *, is_bulk: bool = False
    ) -> list[Encoded]:
        """Return one sequence for each response, in order.

        ``is_bulk`` says that the request is one of many, which go to the threads together.

        Raises:
            InvalidRequest: The model's text format has no form for the conversation.
        """
        if not is_bulk and not self._pending and request.ByteSize() <= _INLINE_BYTES:
            (outcome,) = _encode(encoder, [request])
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        loop = asyncio.get_running_loop()
        pending = _Pending(encoder, request, loop.create_future())
        if not self._pending and self._idle:
            loop.call_soon(self._start)
        self._pending.append(pending)
        return await pending.outcome

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        """Give waiting requests to the idle threads."""
        while self._idle and self._pending:
            job = [self._pending.popleft()]
            size = job[0].request.ByteSize()
            while self._pending and self._pending[0].encoder is job[0].encoder:
                size += self._pending[0].request.ByteSize()
                if size > _JOB_BYTES:
                    break
                job.append(self._pending.popleft())
            wanted = [pending for pending in job if not pending.outcome.done()]
            if wanted:
                self._idle -= 1
                task = asyncio.get_running_loop().run_in_executor(
                    self._threads, _encode_each, wanted[0].encoder, [pending.request for pending in wanted]
                )
                task.add_done_callback(functools.partial(self._finish, wanted))

    def _finish(self, wanted: Sequence[_Pending], done: asyncio.Future[list[_Outcome]]) -> None:
        self._idle += 1
        self._start()
        for pending, outcome in zip(wanted, done.result(), strict=True):
            if pending.outcome.done():
                continue
            if isinstance(outcome, Exception):
                pending.outcome.set_exception(outcome)
            else:
                pending.outcome.set_result(outcome)


def _encode_each(encoder: Encoder, requests: Sequence[reward_pb2.ScoreRequest]) -> list[_Outcome]:
    """Return each request's sequences, or the error with which that request fails alone."""
    try:
        return _encode(encoder, requests)
    except Exception as error:  # tokenizers raises bare Exceptions
        if len(requests) == 1:
            return [error]
    return [outcome for request in requests for outcome in _encode_each(encoder, [request])]


def _encode(encoder: Encoder, requests: Sequence[reward_pb2.ScoreRequest]) -> list[_Outcome]:
    rows = encoder.groups([(turns(request.prompt), request.responses) for request in requests])
    return [
        InvalidRequest([Violation("prompt", str(each))]) if isinstance(each, RefusedConversation) else each
        for each in rows
    ]
