"""Which alerts hold by what this server, Redis and the trainer's reports say at this moment.

Names and severities are those of ``deploy/observability/alerts.yml``. Prometheus has further alerts: those about rates,
and about what lasts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rewardloop.v1 import operations_pb2
from rewardloop_server.calls.vocabulary import Durability
from rewardloop_server.observe.durability import LOSSY

_HOUR_S, _DAY_S = 3_600.0, 86_400.0
_LAG_S = 300.0
_MOST_STREAM = 50_000
_MOST_SILENCED = 0.2
_MOST_FAILURES = 1
_REFUSED_IN_A_DAY = 3

# The alerts that can be told here, with their severities.
SEVERITIES = {
    "RewardloopNoWarmModel": "page",
    "RewardloopRedisNotDurable": "ticket",
    "RewardloopStreamLags": "ticket",
    "RewardloopStreamGrows": "ticket",
    "RewardloopDeadLetters": "ticket",
    "RewardloopPeopleFlagged": "ticket",
    "RewardloopSignalsSilenced": "ticket",
    "RewardloopTrainerNotLeading": "ticket",
    "RewardloopRoundsFail": "ticket",
    "RewardloopRoundGivenUp": "ticket",
    "RewardloopGateRefusesAll": "ticket",
    "RewardloopPromotionHeld": "ticket",
    "RewardloopRewardHacking": "page",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What alerts are told from.

    Attributes:
        now_s: The present time, in Unix seconds.
        models: The models' states.
        is_warm: Whether this server has a warm version, by model.
        has_trainer: Whether a trainer has reported lately.
        queue: The stream of signals.
        newest_letter_s: When the newest dead letter was put aside, in Unix seconds; 0 without any.
        durability: What becomes of signals if Redis is killed.
        rounds: The latest rounds of all models, newest first.
        crowd: The people.
    """

    now_s: float
    models: Sequence[operations_pb2.ModelStatus]
    is_warm: Mapping[str, bool]
    has_trainer: bool
    queue: operations_pb2.QueueStatus
    newest_letter_s: float
    durability: Durability
    rounds: Sequence[operations_pb2.Round]
    crowd: operations_pb2.Crowd


def alerts_of(seen: Seen) -> list[operations_pb2.Alert]:
    """Return the alerts that hold, those that call somebody first."""
    found = [
        operations_pb2.Alert(name=name, severity=SEVERITIES[name], text=text)
        for name, text in (*_of_models(seen), *_of_signals(seen), *_of_rounds(seen))
    ]
    return sorted(found, key=lambda alert: alert.severity)


def _of_models(seen: Seen) -> Iterator[tuple[str, str]]:
    for model, is_warm in seen.is_warm.items():
        if not is_warm:
            yield "RewardloopNoWarmModel", f"This server has no warm {model} model, and refuses requests for it."
    if not seen.has_trainer:
        yield (
            "RewardloopTrainerNotLeading",
            "No trainer has reported in the last minute. Nothing is archived and nothing learns.",
        )
    for status in seen.models:
        if status.promotions_held:
            text = f"A rollback holds {status.model}, which does not learn until a person promotes a version."
            yield "RewardloopPromotionHeld", text


def _of_signals(seen: Seen) -> Iterator[tuple[str, str]]:
    if seen.durability in LOSSY:
        text = "Redis has no append-only file. If it is killed, signals that were acknowledged are lost."
        yield "RewardloopRedisNotDurable", text
    if seen.queue.oldest_wait_s > _LAG_S:
        text = f"The oldest signal has waited {seen.queue.oldest_wait_s:,.0f} s to be archived. None is lost meanwhile."
        yield "RewardloopStreamLags", text
    if seen.queue.stream_length > _MOST_STREAM:
        yield "RewardloopStreamGrows", f"The stream holds {seen.queue.stream_length:,} signals in Redis's memory."
    if seen.newest_letter_s > seen.now_s - _HOUR_S:
        text = f"Signals could not be read in the last hour. There are {seen.queue.dead_letters:,} dead letters."
        yield "RewardloopDeadLetters", text
    flagged = sum(any(flag.detector in ("hands", "topic") for flag in each.flags) for each in seen.crowd.people)
    if flagged:
        ids = "1 id seems" if flagged == 1 else f"{flagged:,} ids seem"
        text = (
            f"{ids} to be one person under several names, or to vote by one word. Their weight is bounded. See People."
        )
        yield "RewardloopPeopleFlagged", text
    if seen.crowd.muted_share > _MOST_SILENCED:
        yield (
            "RewardloopSignalsSilenced",
            f"{seen.crowd.muted_share:.0%} of people's signals weigh nothing.",
        )


def _of_rounds(seen: Seen) -> Iterator[tuple[str, str]]:
    by_model = sorted(seen.rounds, key=lambda each: each.model)
    for model, group in groupby(by_model, key=lambda each: each.model):
        rounds = list(group)
        within = [each for each in rounds if _ended_s(each, seen.now_s) > seen.now_s - _HOUR_S]
        failures = sum(each.failures for each in within)
        if failures > _MOST_FAILURES:
            yield "RewardloopRoundsFail", f"{failures} attempts at a round of {model} failed in the last hour."
        if any(each.outcome == "given_up" for each in within):
            yield (
                "RewardloopRoundGivenUp",
                f"A round of {model} was given up: its process died too often in it.",
            )
        ended = [each for each in rounds if each.outcome and _ended_s(each, seen.now_s) > seen.now_s - _DAY_S]
        refused = sum(each.outcome == "refused" for each in ended)
        if refused >= _REFUSED_IN_A_DAY and not any(each.outcome == "promoted" for each in ended):
            text = f"{refused} candidates of {model} were refused in a day, and none was promoted."
            yield "RewardloopGateRefusesAll", text
        latest = next((each for each in rounds if each.outcome), None)
        if latest is not None and any(reason.rule == "reward_hacking" for reason in latest.reasons):
            yield "RewardloopRewardHacking", "The policy learns to please the reward model instead of people."


def _ended_s(each: operations_pb2.Round, now_s: float) -> float:
    return each.end_time.ToNanoseconds() / 1e9 if each.HasField("end_time") else now_s
