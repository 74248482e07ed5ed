"""Answers prompts: the PolicyService. validate -> encode -> batch -> sample -> log -> reply."""

from __future__ import annotations

import math
import secrets
import time
import uuid
from dataclasses import replace
from typing import Any, TypeAlias

import grpc

from rewardloop.formats.store import Manifest
from rewardloop.formats.text import turns
from rewardloop.v1 import common_pb2, policy_pb2, policy_pb2_grpc
from rewardloop_policy.batching import SampleBatcher
from rewardloop_policy.policy_model import Answer, PolicyModel
from rewardloop_policy.sampling import SampleRequest
from rewardloop_server.errors import InvalidRequest, Violation
from rewardloop_server.freshness import Freshness
from rewardloop_server.generations import GenerationLog
from rewardloop_server.swap import VersionHost
from rewardloop_server.validate import Limits, validate_prompt

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

MAX_CANDIDATES = 16
MAX_TEMPERATURE = 5.0

_FINISH = {"stop": policy_pb2.FINISH_REASON_STOP, "length": policy_pb2.FINISH_REASON_LENGTH}


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """One answer is by one version, and is in the log before its caller has it.

    ``max_new_tokens``: upper bound, and what a request without one gets.
    """

    def __init__(
        self,
        host: VersionHost[PolicyModel],
        batcher: SampleBatcher,
        generations: GenerationLog,
        freshness: Freshness,
        limits: Limits,
        max_new_tokens: int,
    ) -> None:
        self._host = host
        self._batcher = batcher
        self._generations = generations
        self._freshness = freshness
        self._limits = limits
        self._max_new_tokens = max_new_tokens

    async def Generate(self, request: policy_pb2.GenerateRequest, context: Context) -> policy_pb2.GenerateResponse:
        remaining_s = context.time_remaining()
        deadline = None if remaining_s is None else time.monotonic() + remaining_s
        settings = read_settings(request, self._limits, self._max_new_tokens)
        with self._host.lease() as policy:
            if not request.max_new_tokens:
                settings = replace(settings, max_new_tokens=min(settings.max_new_tokens, policy.longest_answer))
            sampling = policy.request(turns(request.prompt), settings)
            answers = await self._batcher.answer(policy, sampling, deadline)
            manifest = policy.manifest
        generation = _generation(request.prompt, settings, answers, manifest)
        await self._generations.put(generation)
        self._freshness.answered(manifest)
        return policy_pb2.GenerateResponse(
            generation_id=generation.generation_id,
            candidates=generation.candidates,
            policy_version=generation.policy_version,
        )


def read_settings(request: policy_pb2.GenerateRequest, limits: Limits, max_new_tokens: int) -> SampleRequest:
    """How to answer, with an empty prompt. A request without a seed gets a random one.

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
    if not 0 <= request.max_new_tokens <= max_new_tokens:
        violations.append(Violation("max_new_tokens", f"1 to {max_new_tokens}, not {request.max_new_tokens}"))
    if violations:
        raise InvalidRequest(violations)
    return SampleRequest(
        prompt=(),
        candidates=request.candidates or 1,
        temperature=temperature,
        top_p=top_p,
        seed=request.seed if request.HasField("seed") else secrets.randbits(63),
        max_new_tokens=request.max_new_tokens or max_new_tokens,
    )


def _generation(
    prompt: common_pb2.Prompt, settings: SampleRequest, answers: list[Answer], manifest: Manifest
) -> policy_pb2.Generation:
    generation = policy_pb2.Generation(
        generation_id=uuid.uuid4().hex,
        prompt=prompt,
        candidates=[
            policy_pb2.Candidate(
                text=answer.text,
                log_probability=answer.logprob,
                token_count=answer.token_count,
                finish_reason=_FINISH[answer.finish],
            )
            for answer in answers
        ],
        policy_version=common_pb2.ModelVersion(version=manifest.version, digest=manifest.digest),
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        max_new_tokens=settings.max_new_tokens,
        show_probabilities=[1.0] * len(answers),
    )
    generation.create_time.GetCurrentTime()
    return generation
