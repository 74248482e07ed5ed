"""``rewardloop off-policy``: one policy's judged answers value another policy, whose truth is simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.policy_versions import publish_policy, quick_policy

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Turn
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.commands.off_policy.command import main
from rewardloop_trainer.policy.rollouts import Rollout, Sampling, roll_out

PROMPTS = [(Turn("user", f"q{i}"),) for i in range(100)]
TEMPERATURE = 0.8


def worth(text: str) -> float:
    """The chance of a thumb up: higher for an answer whose first character is a digit."""
    return 0.8 if text[:1].isdigit() else 0.3


def flattened(model: Any) -> Any:
    """The same policy with smaller logits, so that its answers are more random."""
    with torch.no_grad():
        model.model.norm.weight *= 0.6
    return model


def answers(model: Any, encoder: Any, seed: int, responses: int) -> list[list[Rollout]]:
    return roll_out(model, encoder, PROMPTS, Sampling(responses, 2, seed, TEMPERATURE))


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, float]:
    """A store of two policies, a ledger of thumbs on the first one's answers, and the second one's true value."""
    store = ModelStore(tmp_path / "models")
    one, encoder = quick_policy(0)
    two = flattened(quick_policy(0)[0])
    for model in (one, two):
        publish_policy(store, model, encoder)
    chance, rows = np.random.default_rng(0), []
    for prompt, group in zip(PROMPTS, answers(one, encoder, 1, 8), strict=True):
        for rollout in group:
            if not rollout.text:
                continue
            event = feedback_pb2.FeedbackEvent(event_id=str(len(rows)), responses=[rollout.text])
            event.prompt.CopyFrom(common_pb2.Prompt(text=prompt[0].content))
            event.policy_version.version = "1"
            event.thumb.response, event.thumb.up = 0, bool(chance.random() < worth(rollout.text))
            event.arrival_time.FromSeconds(1_700_000_000)
            event.shown.CopyFrom(
                feedback_pb2.Shown(
                    show_probabilities=[1.0],
                    temperature=TEMPERATURE,
                    top_p=1.0,
                    log_probabilities=[rollout.logprob],
                    token_counts=[rollout.sequence.tokens],
                )
            )
            rows.append(Recorded(f"{1_700_000_000_000 + len(rows)}-0", event))
    Ledger(tmp_path / "ledger").append(rows)
    truth = [worth(rollout.text) for group in answers(two, encoder, 2, 50) for rollout in group if rollout.text]
    return tmp_path, float(np.mean(truth))


def flags(root: Path, version: str = "2") -> list[str]:
    where = ["--archive", str(root / "ledger"), "--store", str(root / "models")]
    return [*where, "--version", version, "--output", "json"]


def test_the_value_of_a_policy_that_answered_nobody(
    world: tuple[Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    root, truth = world
    assert main(flags(root)) == 0
    report = json.loads(capsys.readouterr().out)
    snips = report["value"]["snips"]
    assert snips["lower"] <= truth <= snips["upper"]
    assert snips["upper"] - snips["lower"] < 0.25
    assert report["position"] is None
    assert not report["is_thin"]


def test_the_policy_that_answered_has_the_plain_mean(
    world: tuple[Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(world[0], "1")) == 0
    value = json.loads(capsys.readouterr().out)["value"]
    assert value["snips"]["estimate"] == pytest.approx(value["logged"]["estimate"], abs=1e-4)
    assert value["effective_samples"] == pytest.approx(json_count(world[0]), rel=1e-3)


def json_count(root: Path) -> int:
    return Ledger(root / "ledger", writable=False).row_count


def test_a_table_says_what_was_left_out(world: tuple[Path, float], capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = world
    silent = feedback_pb2.FeedbackEvent(event_id="x", responses=["a"])
    silent.prompt.text, silent.thumb.up = "q1", True
    silent.arrival_time.FromSeconds(1_700_000_000)
    Ledger(root / "ledger").append([Recorded("1800000000000-0", silent)])
    assert main(flags(root)[:-2]) == 0
    out = capsys.readouterr().out
    assert "SNIPS" in out
    assert "1 left out: the propensities were not recorded" in out
    assert "position bias: unknown" in out


def test_a_version_that_did_not_give_its_logged_answers_stops_the_estimate(
    world: tuple[Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = world
    ledger = root / "other"
    rows = list(Ledger(root / "ledger", writable=False).scan())
    for row in rows:
        row.event.policy_version.version = "3"
    Ledger(ledger).append(rows)
    model, encoder = quick_policy(7)
    publish_policy(ModelStore(root / "models"), model, encoder)
    assert main([*flags(root)[2:], "--archive", str(ledger)]) == 1
    assert "policy 3 gives its own logged answers other probabilities" in capsys.readouterr().err


def test_no_judgement_is_no_estimate(world: tuple[Path, float], capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = world
    said = feedback_pb2.FeedbackEvent(event_id="1", responses=["a"])
    said.thumb.up = True
    Ledger(root / "thumb").append([Recorded("1700000000000-0", said)])
    assert main([*flags(root)[2:], "--archive", str(root / "thumb")]) == 1
    assert "needs 30 independent clusters" in capsys.readouterr().err
    assert main([*flags(root)[2:], "--archive", str(root / "nowhere")]) == 1
    assert f"{root / 'nowhere'}: there is no ledger, or no signal in it" in capsys.readouterr().err


def chosen_pairs(root: Path) -> Path:
    """A ledger of choices in which eight people of ten take the longer of two answers that were drawn at random."""
    rows = []
    for i in range(120):
        event = feedback_pb2.FeedbackEvent(event_id=str(i), responses=["short", "a longer answer"])
        event.prompt.text = f"question {i}"
        event.choice.chosen = int(i % 10 < 8)
        event.choice.rejected = 1 - event.choice.chosen
        event.arrival_time.FromSeconds(1_700_000_000)
        event.shown.CopyFrom(feedback_pb2.Shown(show_probabilities=[1.0, 1.0], temperature=1.0, top_p=1.0))
        rows.append(Recorded(f"{1_700_000_000_000 + i}-0", event))
    Ledger(root / "pairs").append(rows)
    return root / "pairs"


@pytest.mark.parametrize("rule", [("greedy", "--epsilon", "0"), ("thompson",)])
def test_a_bandit_is_valued_among_the_answers_that_were_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: tuple[str, ...]
) -> None:
    assert main(["--archive", str(chosen_pairs(tmp_path)), "--bandit", *rule, "--output", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["policy"].startswith("bandit, ")
    assert report["judgements"] == 240
    assert report["value"]["logged"]["estimate"] == pytest.approx(0.5)
    assert report["value"]["snips"]["estimate"] > 0.7


def test_a_ledger_that_gives_a_bandit_no_choice_is_no_estimate(
    world: tuple[Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--archive", str(world[0] / "ledger"), "--bandit", "greedy"]) == 1
    assert "left out: a single response leaves a bandit no choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ([], "name what to estimate"),
        (["--bandit", "greedy", "--version", "2"], "name what to estimate"),
        (["--bandit", "greedy", "--server", "127.0.0.1:1"], "leave out --server"),
    ],
)
def test_what_cannot_be_estimated_together_is_refused(
    named: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(named) == 2
    assert words in capsys.readouterr().err
