"""best of n: samples more candidates than are shown, scores them, and chooses which to show."""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from rewardloop.v1 import policy_pb2, reward_pb2
from rewardloop_server.calls.errors import FloorsNotMet, InvalidRequest, RedisUnavailable, Violation
from rewardloop_server.doors.call import Call
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.generate.choose import Choice, choose_best, choose_pair, choose_uniform
from rewardloop_server.mixing.scorers import Scorers
from rewardloop_server.scoring.score_group import ScoredGroup

MAX_SAMPLED = 64
DEFAULT_RANDOM_SHARE = 0.1

Sample = Callable[[policy_pb2.GenerateRequest], Awaitable[policy_pb2.GenerateResponse]]


class BestOf:
    """Answers requests that have ``best_of``. The log has what is shown, and how it was chosen, before the caller."""

    def __init__(self, scorers: Scorers, generations: GenerationLog) -> None:
        self._scorers = scorers
        self._generations = generations

    async def answer(
        self, request: policy_pb2.GenerateRequest, sample: Sample, call: Call
    ) -> policy_pb2.GenerateResponse:
        """Sample candidates, score them, and return those to show.

        Args:
            request: The caller's request, with ``best_of``.
            sample: Asks the policy for plain candidates, which the policy logs.
            call: Who asks, and by when.

        Raises:
            InvalidRequest: The request contradicts itself about choosing, or about who scores.
            FloorsNotMet: Fewer candidates than are to be returned meet the floors of the mixture that scores.
            RedisUnavailable: The log of generations does not answer, or does not have the policy's answer.
            StoreFull: The log of generations takes no more.
            RewardloopError: Whatever ``sample`` and `Scorers.score` raise.
        """
        check(request)
        self._check_scorer(request)
        asked = policy_pb2.GenerateRequest()
        asked.CopyFrom(request)
        for field in ("best_of", "selection", "random_share", "reward_model"):
            asked.ClearField(field)
        asked.candidates = request.best_of
        if not asked.HasField("seed"):
            asked.seed = secrets.randbits(63)
        reply = await sample(asked)
        group = reward_pb2.ScoreRequest(
            prompt=request.prompt, responses=[c.text for c in reply.candidates], model=request.reward_model
        )
        scored = await self._scorers.score(group, call)
        _note_scores(reply.candidates, scored.reply)
        candidates, meeting = list(reply.candidates), None
        if any(each.HasField("meets_floors") for each in scored.reply.scores):
            scored, candidates = _meeting_floors(scored, candidates)
            meeting = len(candidates)
            if meeting < max(1, request.candidates):
                raise FloorsNotMet(
                    f"{meeting} of {request.best_of} candidates meet the floors of {request.reward_model}, and "
                    f"{max(1, request.candidates)} were asked for"
                )
        # The text makes another random stream than that of the policy's samples, which the bare seed drives.
        choice = choose(request, scored, Random(f"choose {asked.seed}"))
        shown = [candidates[i] for i in choice.shown]
        chosen = policy_pb2.Chosen(
            selection=request.selection or policy_pb2.SELECTION_BEST,
            sampled=len(reply.candidates),
            random_share=random_share(request),
            is_random=choice.is_random,
            set_probability=choice.set_probability,
            expected_information=choice.information,
            reward_version=scored.reply.model_version,
            reward_model=request.reward_model,
            meeting_floors=meeting,
        )
        await self._log(reply.generation_id, shown, choice, chosen)
        return policy_pb2.GenerateResponse(
            generation_id=reply.generation_id,
            candidates=shown,
            policy_version=reply.policy_version,
            chosen=chosen,
            truncated=reply.truncated if reply.HasField("truncated") else None,
            prompt_token_count=reply.prompt_token_count,
        )

    def _check_scorer(self, request: policy_pb2.GenerateRequest) -> None:
        """Check who scores, before anything is sampled. Raises InvalidRequest."""
        mixture = self._scorers.check(request.reward_model, "reward_model")
        if mixture is None:
            return
        violations: list[Violation] = []
        if request.selection == policy_pb2.SELECTION_INFORMATIVE:
            violations.append(Violation("selection", "not with a mixture, which has no score heads"))
        if mixture.mixture.needs_reference:
            violations.append(Violation("reward_model", "compares with a reference, which no candidate has"))
        if violations:
            raise InvalidRequest(violations)

    async def _log(
        self, generation_id: str, shown: Sequence[policy_pb2.Candidate], choice: Choice, chosen: policy_pb2.Chosen
    ) -> None:
        """Log the shown candidates alone, because feedback names a response by its place among these."""
        generation = (await self._generations.get([generation_id])).get(generation_id)
        if generation is None:
            raise RedisUnavailable("the policy's answer is not in the log: the worker may use another Redis")
        del generation.candidates[:], generation.show_probabilities[:]
        generation.candidates.extend(shown)
        generation.show_probabilities.extend(choice.show_probabilities)
        generation.chosen.CopyFrom(chosen)
        await self._generations.put(generation)


def _note_scores(candidates: Sequence[policy_pb2.Candidate], reply: reward_pb2.ScoreResponse) -> None:
    for candidate, found in zip(candidates, reply.scores, strict=True):
        candidate.score, candidate.uncertainty = found.score, found.uncertainty
    for part in reply.parts:
        for candidate, value in zip(candidates, part.values, strict=True):
            candidate.parts[part.name] = value


def _meeting_floors(
    scored: ScoredGroup, candidates: Sequence[policy_pb2.Candidate]
) -> tuple[ScoredGroup, list[policy_pb2.Candidate]]:
    """Return the scores, and the candidates, of those that are at or above every floor."""
    kept = [i for i, each in enumerate(scored.reply.scores) if each.meets_floors]
    reply = reward_pb2.ScoreResponse(
        scores=[scored.reply.scores[i] for i in kept], model_version=scored.reply.model_version
    )
    return ScoredGroup(reply, scored.logits[kept]), [candidates[i] for i in kept]


def choose(request: policy_pb2.GenerateRequest, scored: ScoredGroup, chance: Random) -> Choice:
    """Choose what to show, as the request says, which `check` has passed."""
    match request.selection:
        case policy_pb2.SELECTION_INFORMATIVE:
            # By raw logits, because the heads were fitted as Bradley-Terry strengths before any calibration.
            return choose_pair(scored.logits, random_share(request), chance)
        case policy_pb2.SELECTION_UNIFORM:
            return choose_uniform(scored.logits, max(1, request.candidates), chance)
        case _:
            return choose_best([each.score for each in scored.reply.scores], max(1, request.candidates))


def random_share(request: policy_pb2.GenerateRequest) -> float:
    """Return the share of the shown sets that is drawn at random."""
    match request.selection:
        case policy_pb2.SELECTION_INFORMATIVE:
            return request.random_share if request.HasField("random_share") else DEFAULT_RANDOM_SHARE
        case policy_pb2.SELECTION_UNIFORM:
            return 1.0
        case _:
            return 0.0


def check(request: policy_pb2.GenerateRequest) -> None:
    """Check what the request says about choosing. The policy worker checks the rest.

    Raises InvalidRequest with every violation.
    """
    violations: list[Violation] = []
    shown = request.candidates or 1
    if shown < 0:
        violations.append(Violation("candidates", f"at least 0, which stands for 1, not {shown}"))
    if not max(1, shown) <= request.best_of <= MAX_SAMPLED:
        violations.append(Violation("best_of", f"from {max(1, shown)} to {MAX_SAMPLED}, not {request.best_of}"))
    if request.selection not in policy_pb2.Selection.values():
        violations.append(Violation("selection", "not a known choice"))
    is_informative = request.selection == policy_pb2.SELECTION_INFORMATIVE
    if is_informative and shown != 2:
        violations.append(Violation("candidates", f"2 with SELECTION_INFORMATIVE, not {shown}"))
    if request.HasField("random_share"):
        share = request.random_share
        if not is_informative:
            violations.append(Violation("random_share", "only with SELECTION_INFORMATIVE"))
        elif not (math.isfinite(share) and 0 <= share <= 1):
            violations.append(Violation("random_share", "not between 0 and 1"))
    if violations:
        raise InvalidRequest(violations)
