"""Policy rounds whose judge is a reward model of other signals, trained for it; and rounds that have no judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.learning_runs import learning_seed
from support.policy_rounds import GATE, Setting
from support.policy_versions import FEW_CHARACTERS
from support.tiny_encoder import save_tiny_encoder

from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.commands.export import main as export

OWN = {**GATE, "judge": "own"}
LEARNS = {"learning_rate": 3e-3, "head_learning_rate": 1e-2, "epochs": 8, "gate_prompts": 20}


def choices(count: int, better: Sequence[str] = ("a", "bbbb")) -> list[Recorded]:
    """Choices about prompts of their own, after those of a `Setting`."""
    rows = []
    for i in range(count):
        event = feedback_pb2.FeedbackEvent(event_id=f"m{i}", responses=better)
        event.prompt.text = f"q {i}"
        event.choice.chosen, event.choice.rejected = 0, 1
        event.arrival_time.FromSeconds(1_700_002_000 + i)
        rows.append(Recorded(f"{1_700_002_000_000 + i}-0", event))
    return rows


def setting_of(directory: Path, redis_url: str, signals: int, **reward: Any) -> Setting:
    """One with a reward model that knows nothing yet, from whose base the judge starts."""
    setting = Setting(directory, redis_url, more=choices(signals), gate=OWN)
    base = save_tiny_encoder(directory / "base", learning_seed(), FEW_CHARACTERS)
    assert export(["--base", str(base), "--store", setting.store.url, "--heads", "2"]) == 0
    learning = setting.settings.reward.model_copy(update={**LEARNS, **reward})
    setting.settings = setting.settings.model_copy(update={"reward": learning, "judge_share": 0.4})
    return setting


def reasons(directory: Path, number: int = 1) -> str:
    return "\n".join(json.loads((directory / f"work/refused/policy-{number}/reasons.json").read_text())["reasons"])


@pytest.mark.learning
def test_judge_of_its_own_signals_decides_and_is_kept(tmp_path: Path, redis_url: str) -> None:
    setting = setting_of(tmp_path, redis_url, 200)
    first = setting.current.state
    trained_on = {record.prompt for record in setting.round()._replay.train}
    judging = {record.prompt for record in setting.round()._records_of_judge()}
    assert trained_on
    assert judging
    assert not trained_on & judging
    assert setting.round().run() == "promoted", setting.current.state
    manifest = setting.store.manifest("policy", 2)
    assert manifest.metrics["gate_judge_accuracy_lower"] > 0.5
    assert manifest.metrics["gate_win_rate_lower"] > 0.5
    assert manifest.notes["anchor"] == "1"

    kept = tmp_path / "work" / "judge" / "kept" / "about.json"
    written = kept.stat().st_mtime_ns
    setting.current.reach(replace(first, number=2, parent="2"))
    setting.round().run()
    assert kept.stat().st_mtime_ns == written  # no more signals, no new judge
    assert json.loads(kept.read_text())["learned"] > 20


def test_without_a_reward_model_there_is_no_judge_and_nothing_is_trained(tmp_path: Path, redis_url: str) -> None:
    setting = Setting(tmp_path, redis_url, gate=OWN)
    assert setting.round().run() == "refused"
    assert "no judge: the store has no version of reward" in reasons(tmp_path)
    assert "--policy.gate.judge names another judge" in reasons(tmp_path)
    assert not (tmp_path / "work/refused/policy-1/version").exists()


def test_judge_with_too_few_signals_says_how_many_it_needs(tmp_path: Path, redis_url: str) -> None:
    setting = setting_of(tmp_path, redis_url, 0, gate_prompts=100)
    assert setting.round().run() == "refused"
    assert "no judge: it needs" in reasons(tmp_path)
    assert "more signals of its own" in reasons(tmp_path)


def test_judge_that_is_not_shown_to_agree_with_people_judges_nothing(tmp_path: Path, redis_url: str) -> None:
    """It learns next to nothing, and half of the held-out people say the opposite of the others."""
    setting = setting_of(tmp_path, redis_url, 0, epochs=1, learning_rate=1e-9, head_learning_rate=1e-9, linear_start=0)
    opposite = [Recorded(f"{1_700_003_000_000 + i}-0", row.event) for i, row in enumerate(choices(60, ("bbbb", "a")))]
    setting.ledger.append(opposite)
    last = setting.ledger.last_stream_id
    assert last is not None
    setting.current.reach(replace(setting.current.state, until_stream_id=last, signals=120))
    assert setting.round().run() == "refused"
    assert "not shown to agree with people" in reasons(tmp_path)
