"""The PolicyService: validate -> choose versions -> encode -> batch -> sample -> log -> reply."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Generic, TypeAlias

import grpc

from rewardloop.formats.store import Manifest
from rewardloop.formats.text import FittedPrompt, turns
from rewardloop.v1 import common_pb2, policy_pb2, policy_pb2_grpc
from rewardloop_policy.backend import P, Sampling
from rewardloop_policy.policy_text import Answer
from rewardloop_policy.speech import OnText, Speech
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.calls.errors import InvalidRequest, Violation
from rewardloop_server.calls.estimate import DEFAULT_NEW_TOKENS
from rewardloop_server.calls.validate import Limits, validate_prompt
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.host import VersionHost

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

MAX_CANDIDATES = 64
MAX_TEMPERATURE = 5.0
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256

_FINISH = {"stop": policy_pb2.FINISH_REASON_STOP, "length": policy_pb2.FINISH_REASON_LENGTH}


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer, Generic[P]):
    """Answers prompts. An answer is logged before its caller gets it.

    The active version answers. While there is a canary, a share of the prompts is answered by both: each gives half of
    the candidates, in random order. So a person who prefers one answer to another compares the versions on the same
    prompt.

    Args:
        host: The versions in memory.
        sampling: Answers requests with these versions.
        generations: Where answers are logged.
        freshness: Measures when a version first answers.
        limits: Bounds of requests.
        max_new_tokens: Most new tokens of a candidate, and the number for a request that names none. With 0 a candidate
            may have as many as the policy's context holds, and a request that names none gets the default number.
    """

    def __init__(
        self,
        host: VersionHost[P],
        sampling: Sampling[P],
        generations: GenerationLog,
        freshness: Freshness,
        limits: Limits,
        max_new_tokens: int,
    ) -> None:
        self._host = host
        self._sampling = sampling
        self._generations = generations
        self._freshness = freshness
        self._limits = limits
        self._max_new_tokens = max_new_tokens

    async def Generate(self, request: policy_pb2.GenerateRequest, context: Context) -> policy_pb2.GenerateResponse:
        return await self._answer(request, context)

    async def GenerateStream(
        self, request: policy_pb2.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[policy_pb2.GenerateStreamResponse]:
        generation_id = await self._generations.new_id()
        loop, texts = asyncio.get_running_loop(), asyncio.Queue[policy_pb2.CandidateText | None]()

        def on_text(candidate: int, text: str) -> None:
            if not loop.is_closed():  # else the sampling thread has outlived the drain
                said = policy_pb2.CandidateText(candidate=candidate, text=text)
                loop.call_soon_threadsafe(texts.put_nowait, said)

        answering = asyncio.create_task(self._answer(request.request, context, generation_id, on_text))
        answering.add_done_callback(lambda _: texts.put_nowait(None))
        try:
            while (text := await texts.get()) is not None:
                yield policy_pb2.GenerateStreamResponse(generation_id=generation_id, text=text)
            end = await answering
            yield policy_pb2.GenerateStreamResponse(generation_id=generation_id, end=end)
        finally:
            answering.cancel()

    async def _answer(
        self,
        request: policy_pb2.GenerateRequest,
        context: Context,
        generation_id: str = "",
        on_text: OnText | None = None,
    ) -> policy_pb2.GenerateResponse:
        remaining_s = context.time_remaining()
        deadline = None if remaining_s is None else time.monotonic() + remaining_s
        settings = read_settings(request, self._limits, self._max_new_tokens)
        with ExitStack() as leases:
            policies = self._choose(request, settings, leases)
            if not request.max_new_tokens:
                conversation, wanted = turns(request.prompt), settings.max_new_tokens
                longest = min(policy.longest_answer(conversation, wanted) for policy in policies)
                settings = replace(settings, max_new_tokens=longest)
            speech = Speech(tuple(request.stop), on_text, request.token_log_probabilities)
            candidates, fitted = await self._candidates(policies, request.prompt, settings, deadline, speech)
            manifests = [policy.manifest for policy in policies]
        generation_id = generation_id or await self._generations.new_id()
        generation = _generation(generation_id, request.prompt, settings, candidates, manifests[-1])
        await self._generations.put(generation)
        for manifest in manifests:
            self._freshness.answered(manifest)
        return policy_pb2.GenerateResponse(
            generation_id=generation.generation_id,
            candidates=candidates,
            policy_version=generation.policy_version,
            truncated=_truncated(fitted),
            prompt_token_count=max(len(each.ids) for each in fitted),
        )

    def _choose(self, request: policy_pb2.GenerateRequest, settings: SampleRequest, leases: ExitStack) -> list[P]:
        """Return the versions that answer: one, or for a comparison the canary and then the active version.

        The prompt and the seed decide, so that a prompt which is asked often meets both versions. ``leases`` keeps them
        in memory. Raises NoModel, and UnknownVersion for a pinned version that is not warm.
        """
        if request.HasField("pin_version"):
            return [leases.enter_context(self._host.lease(pin=request.pin_version))]
        key = request.prompt.SerializeToString(deterministic=True) + settings.seed.to_bytes(8, "big", signed=True)
        chosen = leases.enter_context(self._host.lease(key=key))
        active = self._host.active
        if active is None or settings.candidates == 1 or chosen.manifest.version == active.version:
            return [chosen]
        return [chosen, leases.enter_context(self._host.lease(pin=active.version))]

    async def _candidates(
        self,
        policies: Sequence[P],
        prompt: common_pb2.Prompt,
        settings: SampleRequest,
        deadline: float | None,
        speech: Speech,
    ) -> tuple[list[policy_pb2.Candidate], list[FittedPrompt]]:
        """Return about equally many candidates of each version, and what of the prompt each version read.

        Candidates of the last version do not name it. ``speech`` is what all candidates together are to say.
        """
        conversation = turns(prompt)
        asked = [
            policy.request(
                conversation,
                replace(
                    settings,
                    candidates=(settings.candidates + i) // len(policies),
                    # With the same random numbers, versions that differ little would say the same.
                    seed=settings.seed ^ i,
                ),
            )
            for policy, i in zip(policies, reversed(range(len(policies))), strict=True)
        ]
        order = list(range(settings.candidates))
        if len(policies) > 1:
            random.Random(settings.seed).shuffle(order)
        # All are waited for, even if one fails, because the versions are leased only for this call.
        outcomes = await asyncio.gather(
            *(
                self._sampling.answer(policy, request, deadline, _part(speech, order, first))
                for policy, (request, _), first in zip(policies, asked, _firsts(asked), strict=True)
            ),
            return_exceptions=True,
        )
        candidates = []
        for policy, outcome in zip(policies, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            manifest = None if policy is policies[-1] else policy.manifest
            candidates += [_candidate(answer, manifest) for answer in outcome]
        return [candidates[i] for i in order], [fitted for _, fitted in asked]


def _firsts(asked: Sequence[tuple[SampleRequest, FittedPrompt]]) -> list[int]:
    """Return for each version how many candidates the versions before it give."""
    return [0, *(request.candidates for request, _ in asked[:-1])]


def _part(speech: Speech, order: Sequence[int], first: int) -> Speech:
    """Return what a version's candidates are to say, of which the first one is candidate ``first`` of all.

    ``order`` lists the candidates as they are shown, and who listens hears of these places.
    """
    on_text = speech.on_text
    if on_text is None:
        return replace(speech)
    return replace(speech, on_text=lambda candidate, text: on_text(order.index(first + candidate), text))


def read_settings(request: policy_pb2.GenerateRequest, limits: Limits, max_new_tokens: int) -> SampleRequest:
    """Return how to answer the request, without its prompt. A request without a seed gets a random one.

    Raises InvalidRequest with every violation.
    """
    violations: list[Violation] = []
    validate_prompt(request.prompt, "prompt", limits, violations)
    temperature = request.temperature if request.HasField("temperature") else 1.0
    top_p = request.top_p if request.HasField("top_p") else 1.0
    if not 0 <= request.candidates <= MAX_CANDIDATES:
        violations.append(Violation("candidates", f"1 to {MAX_CANDIDATES}, not {request.candidates}"))
    if not (math.isfinite(temperature) and 0 <= temperature <= MAX_TEMPERATURE):
        violations.append(Violation("temperature", f"not between 0 and {MAX_TEMPERATURE:g}"))
    if not 0 < top_p <= 1:
        violations.append(Violation("top_p", "not above 0 and at most 1"))
    if len(request.stop) > MAX_STOPS:
        violations.append(Violation("stop", f"at most {MAX_STOPS} texts, not {len(request.stop)}"))
    for i, stop in enumerate(request.stop):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            violations.append(Violation(f"stop[{i}]", f"1 to {MAX_STOP_CHARACTERS} characters, not {len(stop)}"))
    if request.max_new_tokens < 0 or 0 < max_new_tokens < request.max_new_tokens:
        bounds = f"1 to {max_new_tokens}" if max_new_tokens else "at least 1"
        lifted = "; --max-new-tokens of the policy worker sets the bound" if request.max_new_tokens > 0 else ""
        violations.append(Violation("max_new_tokens", f"{bounds}, not {request.max_new_tokens}{lifted}"))
    # `rewardloop serve` answers best_of with its reward model, and asks this process for plain candidates.
    if request.best_of:
        violations.append(Violation("best_of", "this process has no reward model to choose by"))
    if request.selection and not request.best_of:
        violations.append(Violation("selection", "nothing to choose from without best_of"))
    if request.HasField("random_share") and not request.best_of:
        violations.append(Violation("random_share", "nothing to choose from without best_of"))
    if violations:
        raise InvalidRequest(violations)
    return SampleRequest(
        prompt=(),
        candidates=request.candidates or 1,
        temperature=temperature,
        top_p=top_p,
        seed=request.seed if request.HasField("seed") else secrets.randbits(63),
        max_new_tokens=request.max_new_tokens or max_new_tokens or DEFAULT_NEW_TOKENS,
    )


def _generation(
    generation_id: str,
    prompt: common_pb2.Prompt,
    settings: SampleRequest,
    candidates: Sequence[policy_pb2.Candidate],
    manifest: Manifest,
) -> policy_pb2.Generation:
    generation = policy_pb2.Generation(
        generation_id=generation_id,
        prompt=prompt,
        candidates=candidates,
        policy_version=_version(manifest),
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
        show_probabilities=[1.0] * len(candidates),
    )
    generation.create_time.GetCurrentTime()
    return generation


def _truncated(fitted: Sequence[FittedPrompt]) -> policy_pb2.TruncatedPrompt | None:
    if not any(each.truncated for each in fitted):
        return None
    dropped = max(each.dropped_turns for each in fitted)
    return policy_pb2.TruncatedPrompt(dropped_turns=dropped, is_cut=any(each.is_cut for each in fitted))


def _candidate(answer: Answer, manifest: Manifest | None) -> policy_pb2.Candidate:
    return policy_pb2.Candidate(
        text=answer.text,
        log_probability=answer.logprob,
        token_count=answer.token_count,
        finish_reason=_FINISH[answer.finish],
        policy_version=None if manifest is None else _version(manifest),
        tokens=[policy_pb2.TokenLogProbability(text=text, log_probability=logprob) for text, logprob in answer.tokens],
    )


def _version(manifest: Manifest) -> common_pb2.ModelVersion:
    return common_pb2.ModelVersion(version=manifest.version, digest=manifest.digest)
