"""A policy starts from the base of its line when the signals have grown, and has to beat the live version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.learning_runs import learning_seed
from support.policy_rounds import Setting, thumb_rows

from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.rounds.fresh_start import FRESH_SIGNALS
from rewardloop_trainer.rounds.trainer_state import RoundState, StateFile

_OPEN = {"least_win_rate": 0.0, "least_win_rate_lower": 0.0}


def later_round(setting: Setting, number: int, new: int) -> None:
    """Begin a round of so many new thumbs, from policy 2."""
    before = setting.current.state
    rows = []
    for i, row in enumerate(thumb_rows(new, "a", "bbbb")):
        row.event.event_id = f"round {number}, thumb {i}"
        rows.append(Recorded(f"{1_700_010_000_000 + 10_000 * number + i}-0", row.event))
    setting.ledger.append(rows)
    setting.current.reach(
        replace(
            before,
            number=number,
            phase="training",
            after_stream_id=before.until_stream_id,
            until_stream_id=rows[-1].stream_id,
            signals=before.signals + new,
            new_signals=new,
            parent="2",
            version=None,
            metrics={},
            is_fresh=False,
            start="",
        )
    )


@pytest.mark.learning
def test_a_fresh_start_learns_all_signals_from_the_base_and_meets_the_live_version(
    tmp_path: Path, redis_url: str
) -> None:
    setting = Setting(tmp_path, redis_url, algorithm="dpo")
    gate = setting.settings.policy.gate.model_copy(update=_OPEN)
    policy = setting.settings.policy.model_copy(update={"gate": gate})
    setting.settings = setting.settings.model_copy(update={"policy": policy, "policy_fresh_growth": 1.5})
    assert setting.round().run() == "promoted"
    assert setting.store.manifest("policy", 2).notes[FRESH_SIGNALS] == "60"
    learned = len(setting.round()._replay.train)

    later_round(setting, 2, 29)  # 89 signals are less than 1.5 times 60
    warm = setting.round()
    assert (warm._start.version, warm._live.version) == ("2", "2")
    assert warm._reference is not None
    few = len(warm._examples()[0].pairs) + len(warm._examples()[0].thumbs)

    later_round(setting, 3, 31)
    fresh = setting.round()
    assert (fresh._start.version, fresh._live.version) == ("1", "2")
    assert fresh._reference is None  # the anchor is where it starts
    train, _ = fresh._examples()
    assert len(train.pairs) == learned
    assert len(train.pairs) + len(train.thumbs) > few
    assert fresh.run() == "promoted"
    manifest = setting.store.manifest("policy", 3)
    assert (manifest.parent, manifest.notes[FRESH_SIGNALS]) == ("2", "120")
    assert {"gate_win_rate", "gate_kl", "gate_anchor_kl"} <= manifest.metrics.keys()

    never = setting.settings.model_copy(update={"policy_fresh_growth": 0.0})
    online = setting.settings.model_copy(update={"policy": policy.model_copy(update={"algorithm": "grpo"})})
    later_round(setting, 4, 500)
    for settings in (never, online):
        setting.settings = settings
        assert setting.round()._start.version == "2"


@pytest.mark.learning
def test_a_refused_fresh_start_is_noted_and_repeated_while_the_base_is_live(tmp_path: Path, redis_url: str) -> None:
    setting = Setting(tmp_path, redis_url, algorithm="dpo")
    gate = setting.settings.policy.gate.model_copy(update={"least_win_rate": 1.0})  # no candidate passes
    policy = setting.settings.policy.model_copy(update={"gate": gate})
    setting.settings = setting.settings.model_copy(update={"policy": policy, "policy_fresh_growth": 1.5})
    assert setting.round()._chosen_start.is_fresh
    assert setting.round().run() == "refused"

    file = StateFile(setting.settings.work_dir)  # as the loop ends a round, and a restart finds the state
    file.write(file.read().with_model("policy", file.read().of("policy").finished(1.0, "refused")))
    last = setting.ledger.last_stream_id
    assert setting.current.fresh_until == last
    assert last is not None
    setting.current.reach(RoundState(2, "training", "", last, 89, 30, seed=learning_seed(8), parent="1"))
    assert setting.round()._chosen_start.is_fresh  # a warm round would start from the same weights, and know less


@pytest.mark.learning
def test_a_fresh_start_needs_nothing_of_the_budget_that_the_live_version_used_up(
    tmp_path: Path, redis_url: str
) -> None:
    setting = Setting(tmp_path, redis_url, algorithm="dpo")
    setting.settings = setting.settings.model_copy(update={"policy_fresh_growth": 1.5})
    assert setting.round().run() == "promoted", setting.current.state
    spent = {**_OPEN, "max_anchor_kl": setting.store.manifest("policy", 2).metrics["gate_anchor_kl"]}
    gate = setting.settings.policy.gate.model_copy(update=spent)
    policy = setting.settings.policy.model_copy(update={"gate": gate})
    setting.settings = setting.settings.model_copy(update={"policy": policy})

    reports = tmp_path / "work" / "reports"
    later_round(setting, 2, 29)
    assert setting.round().run() == "refused"
    assert not (reports / "policy-2").exists()  # nothing was trained

    later_round(setting, 3, 31)
    assert setting.round()._start.version == "1"
    setting.round().run()
    assert (reports / "policy-3").exists()
