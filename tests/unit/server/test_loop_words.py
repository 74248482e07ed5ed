"""Alerts of the console are those of Prometheus, and what a model waits for is a sentence in every state."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rewardloop.v1 import operations_pb2 as pb
from rewardloop_server.operations.alerts import SEVERITIES, Seen, alerts_of
from rewardloop_server.operations.waiting import waiting_for

ALERTS = Path(__file__).parents[3] / "deploy" / "observability" / "alerts.yml"
NOW_S = 1_700_000_000.0


def ended(outcome: str, seconds_ago: float, **fields: object) -> pb.Round:
    found = pb.Round(model="reward", outcome=outcome, **fields)  # type: ignore[arg-type]
    found.end_time.FromNanoseconds(int((NOW_S - seconds_ago) * 1e9))
    return found


def names(*rounds: pb.Round) -> set[str]:
    seen = Seen(NOW_S, [], {"reward": True}, True, pb.QueueStatus(), 0.0, "always", rounds, pb.Crowd())
    return {alert.name for alert in alerts_of(seen)}


def test_alerts_have_the_names_and_severities_of_prometheus() -> None:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    known = {
        rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"] if "alert" in rule
    }
    assert SEVERITIES.items() <= known.items()


def test_nothing_is_alerted_while_all_is_well() -> None:
    assert names(ended("promoted", 60)) == set()


def test_refusals_of_a_day_without_a_promotion_are_alerted() -> None:
    refused = [ended("refused", hours * 3_600) for hours in (1, 5, 20)]
    assert names(*refused) == {"RewardloopGateRefusesAll"}
    assert names(*refused, ended("promoted", 7_200)) == set()
    assert names(*refused[:2], ended("refused", 90_000)) == set()


def test_failures_of_the_last_hour_are_alerted() -> None:
    assert names(ended("skipped", 60, failures=3)) == {"RewardloopRoundsFail"}
    assert names(ended("skipped", 7_200, failures=3)) == set()
    assert names(ended("given_up", 60)) == {"RewardloopRoundGivenUp"}
    halt = ended("refused", 60, reasons=[pb.RefusalReason(rule="reward_hacking", text="it pleases")])
    assert names(halt) == {"RewardloopRewardHacking"}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (pb.ModelStatus(model="policy"), "policy: nothing. The trainer does not train it."),
        (
            pb.ModelStatus(model="policy", training=pb.TrainingStatus(phase="trained")),
            "policy: its round, which is judged by its gate.",
        ),
        (
            pb.ModelStatus(
                model="reward", training=pb.TrainingStatus(phase="idle", new_signals=255, least_signals=256)
            ),
            "reward: 1 more comparison.",
        ),
        (
            pb.ModelStatus(
                model="reward",
                training=pb.TrainingStatus(phase="idle", least_signals=2_000, gate_needs_prompts=1),
            ),
            "reward: 2,000 more comparisons. Its last gate lacked 1 held-out prompt with an opinion to decide.",
        ),
    ],
)
def test_what_a_model_waits_for_is_a_sentence(status: pb.ModelStatus, said: str) -> None:
    assert waiting_for(status, True, NOW_S) == said
