"""The policy from which drift is measured: the first of the line, what a manifest names, or what a person named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.policy_rounds import GATE, Setting
from support.policy_versions import byte_encoder, publish_policy, small_llama

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_trainer.rounds.policy_anchor import ANCHOR_NOTE, UnusableAnchor, anchor_version


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A line of three versions, and one of other tokens."""
    store = ModelStore(tmp_path / "models")
    for parent in (None, "1", "2"):
        publish_policy(store, small_llama(), byte_encoder(), parent=parent)
    publish_policy(store, small_llama(), byte_encoder(characters="ab "))
    return store


def test_first_of_the_line_is_the_anchor_until_a_manifest_or_a_person_names_another(store: ModelStore) -> None:
    assert anchor_version(store, "1") == "1"
    assert anchor_version(store, "3") == "1"
    assert anchor_version(store, "3", "2") == "2"

    def write(directory: Path) -> None:
        for file in store.fetch("policy", 3).iterdir():
            if file.name != "manifest.json":
                (directory / file.name).write_bytes(file.read_bytes())

    third: Manifest = store.manifest("policy", 3)
    store.publish(replace(third, parent="3", notes={ANCHOR_NOTE: "2"}), write)
    assert anchor_version(store, "5") == "2"
    assert anchor_version(store, "5", "3") == "3"


def test_anchor_that_is_gone_or_has_other_tokens_is_refused(store: ModelStore) -> None:
    with pytest.raises(UnusableAnchor, match=r"no version 9 of policy; --policy\.gate\.anchor 3 begins"):
        anchor_version(store, "3", "9")
    with pytest.raises(UnusableAnchor, match="other tokens"):
        anchor_version(store, "3", "4")


@pytest.mark.learning
def test_rounds_share_one_budget_of_drift_until_a_person_begins_a_new_one(tmp_path: Path, redis_url: str) -> None:
    setting = Setting(tmp_path, redis_url)
    first = setting.current.state
    assert setting.round().run() == "promoted", setting.current.state
    metrics = setting.store.manifest("policy", 2).metrics
    assert metrics["gate_anchor_kl"] == metrics["gate_kl"]

    def run(number: int, **gate: object) -> str:
        policy = setting.settings.policy
        limits = policy.gate.model_copy(update={**GATE, "least_win_rate": 0.0, "least_win_rate_lower": 0.0, **gate})
        setting.settings = setting.settings.model_copy(update={"policy": policy.model_copy(update={"gate": limits})})
        setting.current.reach(replace(first, number=number, parent="2"))
        return setting.round().run()

    budget = metrics["gate_kl"] / 2
    assert run(2, max_anchor_kl=budget) == "refused"
    (reason,) = json.loads((tmp_path / "work/refused/policy-2/reasons.json").read_text())["reasons"]
    assert "too far from the anchor policy, 1: KL" in reason
    assert "--policy.gate.anchor N begins a new one from version N" in reason

    assert run(3, max_anchor_kl=1e6, anchor="2") == "promoted"
    later = setting.store.manifest("policy", 3)
    assert later.notes[ANCHOR_NOTE] == "2"
    assert later.metrics["gate_anchor_kl"] == later.metrics["gate_kl"]
