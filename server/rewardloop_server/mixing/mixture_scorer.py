"""score by a mixture: every part scores the group, and their values make a total.

check -> admit the whole group -> each model beside the others, then the rules -> total -> reply
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from rewardloop.formats.mixing.mixture_file import Mixture
from rewardloop.formats.mixing.rules import Rule
from rewardloop.formats.mixing.total import NotFinite, PartValues, Total, totals_of
from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_server.calls.errors import InternalError, InvalidRequest, Violation
from rewardloop_server.calls.estimate import estimated_tokens
from rewardloop_server.doors.call import Call
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batching import Batching
from rewardloop_server.scoring.score_group import GroupScorer, ScoredGroup, lane_of

# After so many characters of responses that rules have read, other requests have their turn on the event loop.
_READ_AT_ONCE = 65_536


class MixtureScorer:
    """Scores groups by one mixture. If a part cannot score, the group fails: no total is made of the others.

    Args:
        name: The mixture's name.
        mixture: Its parts.
        file_version: The version of the file that defines it.
        models: The scorer of each model.
        batcher: Admits a group with all of its parts.
        metrics: Where responses below a floor are counted.
    """

    def __init__(
        self,
        name: str,
        mixture: Mixture,
        file_version: str,
        models: Mapping[str, GroupScorer],
        batcher: Batching,
        metrics: ServerMetrics,
    ) -> None:
        self.mixture = mixture
        self._file_version = file_version
        self._models, self._rules, self._digest = mixture.models, mixture.rules, mixture.digest
        self._scorers = {part: models[model] for part, model in self._models.items()}
        self._batcher = batcher
        self._metrics = metrics
        self._responses = metrics.mixture_responses_total.labels(mixture=name)
        self._below = {
            part: metrics.below_floor_total.labels(mixture=name, part=part)
            for part, counted in mixture.parts.items()
            if counted.floor is not None
        }

    async def score(
        self, request: reward_pb2.ScoreRequest, call: Call, *, is_bounded: bool = True, is_bulk: bool = False
    ) -> ScoredGroup:
        """Score one group, as `GroupScorer.score` does.

        Raises:
            InvalidRequest: The request pins a version, or lacks the reference that a rule compares with.
            NoModel: A model of the mixture has no warm version.
            QueueFull: The queue has no room for the group with all of its parts, and ``is_bounded``.
            InternalError: A value, or a total, is not finite.
            RewardloopError: Whatever `GroupScorer.score` raises for a part.
        """
        self._check(request)
        if is_bounded and self._scorers:
            tokens = estimated_tokens(request) * len(self._scorers)
            lane = lane_of(request)
            with self._batcher.reserved(lane, tokens, call.deadline, call.queue_name, account=call.caller) as granted:
                # Admitted or refused as a whole: the parts wait for room rather than lose the work of the others.
                if granted is not None:
                    await granted
        replies = await self._replies(request, call, is_bulk=is_bulk)
        said = {name: _values_of(reply) for name, reply in replies.items()}
        for name, rule in self._rules.items():
            said[name] = await _by_rule(rule, request.responses, request.reference)
        try:
            totals = totals_of(self.mixture, said)
        except NotFinite as error:
            raise InternalError from error
        self._count(said, len(totals))
        logits = np.array([[total.score] for total in totals], dtype=np.float32)
        return ScoredGroup(self._reply(totals, said, replies), logits)

    def _check(self, request: reward_pb2.ScoreRequest) -> None:
        violations = [
            Violation(field, "a mixture has no versions: its parts have")
            for field in ("pin_version", "min_version")
            if request.HasField(field)
        ]
        if self.mixture.needs_reference and not request.reference.strip():
            violations.append(Violation("reference", "missing: this mixture compares with it"))
        if violations:
            raise InvalidRequest(violations)

    async def _replies(
        self, request: reward_pb2.ScoreRequest, call: Call, *, is_bulk: bool
    ) -> dict[str, reward_pb2.ScoreResponse]:
        """Return each model's reply by the part's name. The first failure ends the work of all."""
        tasks = [
            asyncio.create_task(scorer.score(request, call, is_bounded=False, is_bulk=is_bulk))
            for scorer in self._scorers.values()
        ]
        try:
            scored = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return {name: each.reply for name, each in zip(self._scorers, scored, strict=True)}

    def _count(self, said: Mapping[str, PartValues], responses: int) -> None:
        self._responses.inc(responses)
        for name, counter in self._below.items():
            floor = self.mixture.parts[name].floor
            counter.inc(sum(floor is not None and value < floor for value in said[name].values))

    def _reply(
        self,
        totals: Sequence[Total],
        said: Mapping[str, PartValues],
        replies: Mapping[str, reward_pb2.ScoreResponse],
    ) -> reward_pb2.ScoreResponse:
        digest = hashlib.sha256(self._digest.encode())
        for reply in replies.values():
            digest.update(reply.model_version.digest.encode())
        has_floors = self.mixture.has_floors
        read = list(zip(*(reply.scores for reply in replies.values()), strict=True)) or [()] * len(totals)
        whole = reward_pb2.ScoreResponse(
            scores=[
                reward_pb2.ResponseScore(
                    score=total.score,
                    uncertainty=total.uncertainty,
                    token_count=max((each.token_count for each in parts), default=0),
                    truncated=any(each.truncated for each in parts),
                    meets_floors=total.meets_floors if has_floors else None,
                )
                for total, parts in zip(totals, read, strict=True)
            ],
            model_version=common_pb2.ModelVersion(version=self._file_version, digest=digest.hexdigest()),
            parts=[self._part(name, said[name], replies.get(name)) for name in self.mixture.parts],
        )
        for field in reward_pb2.ScoreTimings.DESCRIPTOR.fields:
            most = max((getattr(reply.timings, field.name) for reply in replies.values()), default=0)
            setattr(whole.timings, field.name, most)
        return whole

    def _part(self, name: str, said: PartValues, reply: reward_pb2.ScoreResponse | None) -> reward_pb2.ScorePart:
        part = self.mixture.parts[name]
        return reward_pb2.ScorePart(
            name=name,
            model=self._models.get(name, ""),
            model_version=reply.model_version if reply is not None else None,
            values=said.values,
            uncertainties=said.uncertainties,
            weight=part.weight,
            floor=part.floor,
        )


def _values_of(reply: reward_pb2.ScoreResponse) -> PartValues:
    return PartValues([each.score for each in reply.scores], [each.uncertainty for each in reply.scores])


async def _by_rule(rule: Rule, responses: Sequence[str], reference: str) -> PartValues:
    values, read = [], 0
    for response in responses:
        values.append(rule.value(response, reference))
        read += len(response)
        if read >= _READ_AT_ONCE:
            read = 0
            await asyncio.sleep(0)
    return PartValues(values)
