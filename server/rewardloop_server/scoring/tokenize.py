"""tokenize: turns prompts and responses into ids, in threads of its own."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from rewardloop.formats.text import Encoded, Encoder, RefusedConversation, Turn, turns
from rewardloop.v1 import reward_pb2
from rewardloop_server.calls.errors import InternalError, InvalidRequest, Violation
from rewardloop_server.calls.estimate import bytes_of, bytes_of_text
from rewardloop_server.device.priority import step_back
from rewardloop_server.guard.watch import Watch, Work

# A single request of up to this many bytes is tokenized on the event loop if no other waits. 360 bytes, which are 64
# tokens, took 44 microseconds (word level, 2 cores), and a hop to a thread and back 73 (99 of CPU time).
_INLINE_BYTES = 512

# Most bytes of text that go to a thread at once, so that the threads share a flood and no request waits long. A request
# with more is split by its responses; one text is never split.
_JOB_BYTES = 32 * 1024

# By how much the threads of jobs with more bytes than the second raise their niceness. Such a job takes from 10 ms to a
# third of a second, for which it would else take a core from the engine.
_LONG_NICE, _LONG_BYTES = 19, 8 * 1024

# The longest legal texts of a request take a thread less than a second.
_LIMIT_S = 30.0

_Outcome: TypeAlias = list[Encoded] | Exception


@dataclass(frozen=True, slots=True)
class _Part:
    """A prompt with some of its responses, of ``size`` bytes together."""

    encoder: Encoder
    prompt: Sequence[Turn]
    responses: Sequence[str]
    size: int
    outcome: asyncio.Future[list[Encoded]]


class TokenizePool:
    """Tokenizes in ``threads`` threads; the tokenizer releases the interpreter lock while it works.

    It is fair between callers: each in turn gives a part of a request. It is work-conserving, but for one thread that
    long parts leave to short ones: parts that come while all threads are busy go to the next free thread together.

    Args:
        threads: How many parts or jobs of short parts are worked on at once.
        watch: Ends the process if a thread is lost in a text.
    """

    def __init__(self, threads: int, watch: Watch | None = None) -> None:
        self._watch = watch or Watch()
        self._short = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        # Threads of their own, because only the privileged may lower the niceness of a thread again.
        self._long = ThreadPoolExecutor(
            threads, thread_name_prefix="tokenize-long", initializer=step_back, initargs=(_LONG_NICE,)
        )
        self._idle = threads
        self._idle_for_long = max(1, threads - 1)
        self._callers: dict[str, deque[_Part]] = {}  # in the order of their turns
        self._waiting = 0
        self._will_start = False  # `_start` runs once for all requests that come in one turn of the event loop

    @property
    def waiting(self) -> int:
        """How many parts of requests no thread has taken yet."""
        return self._waiting

    async def encode(
        self, encoder: Encoder, request: reward_pb2.ScoreRequest, caller: str, *, is_bulk: bool = False
    ) -> list[Encoded]:
        """Return one sequence for each response, in order.

        ``is_bulk`` says that the request is one of many, which go to the threads together.

        Raises:
            InvalidRequest: The model's text format has no form for the conversation.
        """
        prompt, size = turns(request.prompt), bytes_of(request)
        if not is_bulk and caller not in self._callers and size <= _INLINE_BYTES:
            (outcome,) = _encode(encoder, [(prompt, request.responses)])
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        loop = asyncio.get_running_loop()
        if self._idle and not self._will_start:
            self._will_start = True
            loop.call_soon(self._start)
        queue = self._callers.setdefault(caller, deque())
        parts = [
            _Part(encoder, prompt, responses, bytes_of_part, loop.create_future())
            for responses, bytes_of_part in _split(request, size)
        ]
        queue.extend(parts)
        self._waiting += len(parts)
        if len(parts) == 1:
            return await parts[0].outcome
        return [row for rows in await asyncio.gather(*(part.outcome for part in parts)) for row in rows]

    def close(self) -> None:
        for threads in (self._short, self._long):
            threads.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        """Give waiting parts to the idle threads."""
        self._will_start = False
        while self._idle and (job := self._next_job()):
            is_long = job[0].size > _JOB_BYTES
            self._idle -= 1
            self._idle_for_long -= is_long
            loop = asyncio.get_running_loop()
            on_lost = functools.partial(loop.call_soon_threadsafe, self._lose, job)
            threads = self._long if sum(part.size for part in job) > _LONG_BYTES else self._short
            task = loop.run_in_executor(threads, self._encode, job, on_lost)
            task.add_done_callback(functools.partial(self._finish, job, is_long))

    def _encode(self, job: Sequence[_Part], on_lost: Callable[[], object]) -> list[_Outcome]:
        """Tokenize in this thread, watched: a pattern of a tokenizer may need any time on some text."""
        with self._watch.over(Work("tokenizing", "", _LIMIT_S, lambda: None, on_lost=on_lost)):
            return _encode_each(job[0].encoder, [(part.prompt, part.responses) for part in job])

    def _lose(self, job: Sequence[_Part]) -> None:
        """Fail the parts on which a thread is lost, with an error after which no client asks another replica."""
        for part in job:
            if not part.outcome.done():
                part.outcome.set_exception(InternalError())

    def _next_job(self) -> list[_Part]:
        """Take parts of one encoder, from the callers in their turns, for one thread."""
        job: list[_Part] = []
        room, found = _JOB_BYTES, True
        while found and room > 0:
            found = False
            for caller in tuple(self._callers):
                head = self._callers[caller][0]
                is_wanted = not head.outcome.done()  # else its caller went away
                if is_wanted and job and (head.encoder is not job[0].encoder or head.size > room):
                    continue
                if is_wanted and head.size > _JOB_BYTES and self._idle_for_long < 1:
                    continue
                self._took(caller)
                found = True
                if is_wanted:
                    job.append(head)
                    room -= head.size
        return job

    def _took(self, caller: str) -> None:
        """Remove the first part of a caller, whose next turn comes after all others."""
        queue = self._callers.pop(caller)
        queue.popleft()
        self._waiting -= 1
        if queue:
            self._callers[caller] = queue

    def _finish(self, job: Sequence[_Part], is_long: bool, done: asyncio.Future[list[_Outcome]]) -> None:
        self._idle += 1
        self._idle_for_long += is_long
        self._start()
        for part, outcome in zip(job, done.result(), strict=True):
            if part.outcome.done():
                continue
            if isinstance(outcome, Exception):
                part.outcome.set_exception(outcome)
            else:
                part.outcome.set_result(outcome)


def _split(request: reward_pb2.ScoreRequest, size: int) -> Iterator[tuple[Sequence[str], int]]:
    """Split a large request by its responses; yield those of each part, and the part's bytes with the prompt.

    The responses of a part have as many bytes as the prompt or more, if there are as many, because each part's prompt
    is tokenized again.
    """
    if size <= _JOB_BYTES or len(request.responses) == 1:
        yield request.responses, size
        return
    prompt = request.prompt.ByteSize()
    most = max(_JOB_BYTES - prompt, prompt)
    part: list[str] = []
    held = 0
    for response in request.responses:
        length = bytes_of_text(response)
        if part and held + length > most:
            yield part, prompt + held
            part, held = [], 0
        part.append(response)
        held += length
    yield part, prompt + held


def _encode_each(encoder: Encoder, groups: Sequence[tuple[Sequence[Turn], Sequence[str]]]) -> list[_Outcome]:
    """Return each group's sequences, or the error with which that group fails alone."""
    try:
        return _encode(encoder, groups)
    except Exception as error:  # tokenizers raises bare Exceptions
        if len(groups) == 1:
            return [error]
    return [outcome for group in groups for outcome in _encode_each(encoder, [group])]


def _encode(encoder: Encoder, groups: Sequence[tuple[Sequence[Turn], Sequence[str]]]) -> list[_Outcome]:
    return [
        InvalidRequest([Violation("prompt", str(each))]) if isinstance(each, RefusedConversation) else each
        for each in encoder.groups(groups)
    ]
