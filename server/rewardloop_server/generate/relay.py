"""The PolicyService as callers see it: forwards calls to the policy worker, and answers those with ``best_of``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from rewardloop.v1 import policy_pb2, policy_pb2_grpc
from rewardloop_server.calls.errors import InvalidRequest, Violation
from rewardloop_server.doors.call import Context, call_of
from rewardloop_server.doors.callers import PRESENT
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.generate.best_of import BestOf
from rewardloop_server.versions.worker_link import PolicyWorkerLink


class PolicyRelay(policy_pb2_grpc.PolicyServiceServicer):
    """Forwards Generate and GenerateStream to the policy worker.

    Args:
        link: The connection to the worker.
        best_of: Answers requests that have ``best_of``. If it is None, they go to the worker, which refuses them.
        generations: The log, in which is noted for which authenticated caller each answer is.
    """

    def __init__(
        self, link: PolicyWorkerLink, best_of: BestOf | None = None, generations: GenerationLog | None = None
    ) -> None:
        self._link = link
        self._best_of = best_of
        self._generations = generations

    async def Generate(self, request: policy_pb2.GenerateRequest, context: Context) -> policy_pb2.GenerateResponse:
        reply = await self._answer(request, context)
        if self._generations is not None and (credential := PRESENT.get()) is not None:
            await self._generations.note_caller(reply.generation_id, credential.caller)
        return reply

    async def GenerateStream(
        self, request: policy_pb2.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[policy_pb2.GenerateStreamResponse]:
        if request.request.best_of:
            raise InvalidRequest([Violation("best_of", "chooses among whole answers: not with a stream")])
        if request.request.reward_model:
            raise InvalidRequest([Violation("reward_model", "only with best_of")])
        stub: Any = policy_pb2_grpc.PolicyServiceStub(self._link.channel())
        async with aclosing(self._link.forward_stream(stub.GenerateStream, request, context)) as replies:
            async for reply in replies:
                credential = PRESENT.get()
                if reply.HasField("end") and self._generations is not None and credential is not None:
                    await self._generations.note_caller(reply.generation_id, credential.caller)
                yield reply

    async def _answer(self, request: policy_pb2.GenerateRequest, context: Context) -> policy_pb2.GenerateResponse:
        if request.reward_model and not request.best_of:
            raise InvalidRequest([Violation("reward_model", "only with best_of")])
        stub: Any = policy_pb2_grpc.PolicyServiceStub(self._link.channel())
        if not request.best_of or self._best_of is None:
            return await self._link.forward(stub.Generate, request, context)

        async def sample(asked: policy_pb2.GenerateRequest) -> policy_pb2.GenerateResponse:
            return await self._link.forward(stub.Generate, asked, context)

        return await self._best_of.answer(request, sample, call_of(context))
