"""Answers requests on a vLLM server, which samples everything that it is sent together.

Each candidate is a stream of its own, so that it ends at its own stop text, and its seed makes it the same however many
others are asked for. While the server is away every request is turned away. Once it is back, what it served is loaded
again and compared with torch before anything is answered.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import structlog

from rewardloop.process.http_servers import said
from rewardloop_policy.policy_text import Answer
from rewardloop_policy.speech import Speech
from rewardloop_policy.vllm_versions import VllmPolicy, VllmVersions
from rewardloop_sampling.sampling import Sampled, SampleRequest
from rewardloop_sampling.vllm_client import (
    COMPLETIONS,
    Asked,
    VllmEndpoint,
    VllmError,
    VllmGarbage,
    VllmRefused,
    VllmUnknownModel,
    VllmUnreachable,
    checked,
    read_list,
    read_tokens,
    refusal,
)
from rewardloop_server.calls.errors import DeadlinePassed, NotLoadable, PolicyUnavailable, QueueFull, RewardloopError
from rewardloop_server.calls.vocabulary import SAMPLING_LANE, Stage
from rewardloop_server.observe.metrics import ServerMetrics

log = structlog.get_logger()

_HEALTH = "/health"
_HEALTH_EVERY_S = 0.5
_HEALTH_TIMEOUT_S = 5.0
_MOST_PAUSE_S = 10.0
_TEXT_THREADS = 2


class VllmAnswers:
    """Answers requests, as many candidates at once as the server is to have.

    Args:
        endpoint: The server.
        versions: The versions on it.
        max_rows: Most candidates at the server at once.
        max_queue_rows: Most candidates that wait here.
        metrics: Where the queue and the answers are measured.
    """

    def __init__(
        self,
        endpoint: VllmEndpoint,
        versions: VllmVersions,
        *,
        max_rows: int,
        max_queue_rows: int,
        metrics: ServerMetrics,
    ) -> None:
        self._endpoint, self._versions, self._metrics = endpoint, versions, metrics
        self._slots = asyncio.Semaphore(max_rows)
        self._max_queue_rows = max_queue_rows
        self._waiting: dict[object, float] = {}  # since when, of candidates
        self._http = httpx2.AsyncClient(**endpoint.http)
        self._texts = ThreadPoolExecutor(_TEXT_THREADS, thread_name_prefix="texts")
        self._away: str | None = None  # why the server does not answer
        self._restoring = asyncio.Lock()

    @property
    def is_ready(self) -> bool:
        """Whether the server answers, as far as is known."""
        return self._away is None

    async def answer(
        self, policy: VllmPolicy, request: SampleRequest, deadline: float | None, speech: Speech | None = None
    ) -> list[Answer]:
        """Return the request's candidates. The caller must keep ``policy`` alive until then.

        Args:
            policy: The version that answers.
            request: What to sample.
            deadline: When the caller stops waiting, on the monotonic clock; None for never.
            speech: Where the texts stop, and who hears them.

        Raises:
            QueueFull: Too many candidates wait, here or at the server.
            DeadlinePassed: The deadline passed first.
            NotLoadable: The server refuses the request, or its reply is none.
            PolicyUnavailable: The server is away.
        """
        if self._away is not None:
            raise PolicyUnavailable(self._away)
        if self._waiting and len(self._waiting) + request.candidates > self._max_queue_rows:
            raise QueueFull(f"the queue holds {len(self._waiting)} of {self._max_queue_rows} candidates")
        began, heard = time.monotonic(), speech or Speech()
        remaining = None if deadline is None else deadline - began
        candidates = [
            asyncio.ensure_future(self._candidate(policy, request, i, heard)) for i in range(request.candidates)
        ]
        try:
            async with asyncio.timeout(remaining):
                answers = await asyncio.gather(*candidates)
        except TimeoutError as error:
            raise DeadlinePassed("the deadline passed before the answer was sampled") from error
        finally:
            for each in candidates:
                each.cancel()
            await asyncio.gather(*candidates, return_exceptions=True)
        self._metrics.batch_tokens.observe(sum(answer.token_count for answer in answers))
        self._observe("total", time.monotonic() - began)
        return answers

    def set_gauges(self) -> None:
        """Set the queue's gauges."""
        oldest = min(self._waiting.values(), default=time.monotonic())
        self._metrics.queue_rows.labels(lane=SAMPLING_LANE).set(len(self._waiting))
        self._metrics.queue_saturation_ratio.labels(lane=SAMPLING_LANE).set(len(self._waiting) / self._max_queue_rows)
        self._metrics.queue_oldest_wait_seconds.labels(lane=SAMPLING_LANE).set(time.monotonic() - oldest)

    async def run(self) -> None:
        """Watch the server until cancelled, and put the versions back once it answers after it was away."""
        pause = _HEALTH_EVERY_S
        while True:
            await asyncio.sleep(pause)
            pause = _HEALTH_EVERY_S
            try:
                reply = await self._http.get(_HEALTH, timeout=_HEALTH_TIMEOUT_S)
                if reply.status_code >= 500:
                    raise VllmUnreachable(f"{self._endpoint.address}: {_HEALTH}: {reply.status_code}")
                if self._away is not None:
                    await asyncio.to_thread(self._versions.put_all_back)
                    log.info("vllm answers again", server=self._endpoint.address)
                    self._away = None
            except (httpx2.HTTPError, VllmUnreachable) as error:
                self._lost(error)
            except RewardloopError as error:  # it is back, but not with what it served
                log.error("vllm is back without its versions", server=self._endpoint.address, error=str(error))
                self._away, pause = str(error), _MOST_PAUSE_S

    def close(self) -> None:
        self._texts.shutdown(wait=False, cancel_futures=True)
        self._versions.close()

    async def _candidate(self, policy: VllmPolicy, request: SampleRequest, candidate: int, speech: Speech) -> Answer:
        key = object()
        self._waiting[key] = queued = time.monotonic()
        try:
            await self._slots.acquire()
        finally:
            del self._waiting[key]
        try:
            began = time.monotonic()
            self._observe("queue", began - queued)
            sampled = await self._sampled(policy, request, candidate, speech)
            self._observe("run", time.monotonic() - began)
        finally:
            self._slots.release()
        answer: Answer = await self._in_thread(policy.read, sampled, speech, candidate)
        return answer

    async def _sampled(self, policy: VllmPolicy, request: SampleRequest, candidate: int, speech: Speech) -> Sampled:
        """Sample a candidate. Errors of the server become those that callers see."""
        try:
            try:
                return await self._streamed(policy, request, candidate, speech)
            except VllmUnknownModel:
                # Another process has unloaded it, or the server has: nothing was sampled yet.
                async with self._restoring:
                    await asyncio.to_thread(self._versions.put_back, policy)
                return await self._streamed(policy, request, candidate, speech)
        except httpx2.TimeoutException as error:  # it may have too much to do, and whether it lives is asked elsewhere
            raise PolicyUnavailable(f"{self._endpoint.address} gives no token in time") from error
        except (httpx2.HTTPError, VllmUnreachable) as error:
            self._lost(error)
            raise PolicyUnavailable(f"{self._endpoint.address} went away while it sampled") from error
        except VllmError as error:
            log.error("vllm gave no answer", version=policy.manifest.version, error=str(error))
            raise NotLoadable(f"policy {policy.manifest.version} failed on this request") from error

    async def _streamed(self, policy: VllmPolicy, request: SampleRequest, candidate: int, speech: Speech) -> Sampled:
        ids, logprobs, finish = list[int](), list[float](), None
        seed = _seed(request.seed, candidate)
        count, temperature = request.max_new_tokens, request.temperature
        asked = Asked(
            policy.name, request.prompt, policy.ends, 1, count, temperature, request.top_p, seed, policy.fields
        )
        is_heard = bool(speech.stop) or speech.on_text is not None
        saying = policy.saying()
        async for choice in self._choices(asked):
            new, its = read_tokens(choice, asked.prompt)
            heard = len(ids)
            ids += new
            logprobs += its
            finish = choice.get("finish_reason") or finish
            if is_heard and (end := await self._in_thread(_hear, policy, saying, speech, candidate, ids, heard)):
                return _as_contracted(Sampled(ids[:end], logprobs[:end], "length"), temperature)
        if finish is None:
            raise VllmUnreachable("the stream broke off")
        done = checked(ids, logprobs, finish, asked)
        return _as_contracted(Sampled(done.ids, done.logprobs, done.finish), temperature)

    async def _choices(self, asked: Asked) -> AsyncIterator[Any]:
        """Yield the parts of the only answer as they come. Raises VllmError, QueueFull and HTTPError."""
        body = {**asked.body, "stream": True}
        async with self._http.stream("POST", COMPLETIONS, json=body) as reply:
            if reply.status_code != 200:
                text = (await reply.aread()).decode(errors="replace")
                if reply.status_code == 429:
                    raise QueueFull(f"{self._endpoint.address} has too many requests")
                if reply.status_code >= 500:
                    raise VllmUnreachable(f"{reply.status_code}: {said(text)}")
                raise refusal(self._endpoint, COMPLETIONS, reply.status_code, text)
            async for line in reply.aiter_lines():
                if not line.startswith("data:"):
                    continue
                if (data := line.removeprefix("data:").strip()) == "[DONE]":
                    return
                for choice in _read_part(data):
                    yield choice

    def _lost(self, error: Exception) -> None:
        if self._away is None:
            reason = f"{type(error).__name__}: {error}"
            log.error("vllm does not answer", server=self._endpoint.address, error=reason)
        self._away = f"{self._endpoint.address} does not answer"

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        """Decode texts beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._texts, work, *arguments)

    def _observe(self, stage: Stage, seconds: float) -> None:
        self._metrics.stage_seconds.labels(stage=stage, lane=SAMPLING_LANE).observe(seconds)


def _hear(
    policy: VllmPolicy,
    saying: Callable[[Sequence[int]], str],
    speech: Speech,
    candidate: int,
    ids: Sequence[int],
    heard: int,
) -> int:
    """Let the speech hear the ids after the first ``heard``. Return after how many it is over, 0 if it is not."""
    for count in range(heard + 1, len(ids) + 1):
        if ids[count - 1] not in policy.ends and speech.hear(candidate, saying(ids[:count])):
            return count
    return 0


def _as_contracted(sampled: Sampled, temperature: float) -> Sampled:
    """Return a candidate whose log-probabilities are of the distribution sampled from: 0 if that is greedy."""
    if temperature > 0:
        return sampled
    return Sampled(sampled.ids, [0.0] * len(sampled.ids), sampled.finish)


def _seed(seed: int, candidate: int) -> int:
    """Return a seed of its own for each candidate."""
    return (seed * 0x9E3779B97F4A7C15 + (candidate + 1) * 0xD1B54A32D192ED03) % 2**63


def _read_part(data: str) -> Sequence[Any]:
    try:
        part = json.loads(data)
    except ValueError as error:
        raise VllmGarbage(f"{COMPLETIONS}: not JSON") from error
    if isinstance(part, dict) and part.get("error"):
        failed = part["error"]
        code = failed.get("code") if isinstance(failed, dict) else None
        kind = VllmRefused if isinstance(code, int) and 400 <= code < 500 else VllmUnreachable
        raise kind(said(json.dumps(failed)))
    return read_list(part, "choices")
