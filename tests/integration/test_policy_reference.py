"""The reference that rounds are held to, and rounds that stop when the live policy is at the end of its budget."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from support.learning_runs import learning_seed
from support.policy_rounds import Setting
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.reference_drift import drift

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Labelled, Pair
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.policy.dpo_train import DpoProgress, train_policy
from rewardloop_trainer.policy.kto_train import KtoProgress, train_kto
from rewardloop_trainer.policy.offline_settings import DpoSettings, KtoSettings
from rewardloop_trainer.policy.online.learner import Learner
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.rollouts import Sampling, roll_out
from rewardloop_trainer.rounds.policy_anchor import used_up
from rewardloop_trainer.rounds.trainer_state import RoundState

ENCODER = byte_encoder(64)
PROMPTS = [(Turn("user", f"q{i}"),) for i in range(8)]
PAIRS = [Pair(prompt, "please do", "no way") for prompt in PROMPTS]
THUMBS = [Labelled(prompt, "please do", 1.0) for prompt in PROMPTS]
OTHER = Reference("1", "other", lambda: small_llama(1))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def add(store: ModelStore, parent: str | None, anchor: str = "", metrics: Mapping[str, float] | None = None) -> str:
    model, encoder = small_llama(0), ENCODER
    version = publish_policy(store, model, encoder, parent).version
    if anchor:
        manifest = store.manifest("policy", version)
        noted = Manifest(
            model="policy",
            parent=parent,
            text_format=manifest.text_format,
            metrics=metrics or {},
            notes={"anchor": anchor},
        )
        directory = store.fetch("policy", version)
        version = store.publish(noted, lambda target: copy_files(directory, target)).version
    return str(version)


def copy_files(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("manifest.json"), dirs_exist_ok=True)


@pytest.mark.parametrize(("kl", "anchor", "allowed"), [(29.9, "1", True), (30.0, "1", False), (99.0, "2", True)])
def test_a_budget_that_is_used_up_says_what_to_do(store: ModelStore, kl: float, anchor: str, allowed: bool) -> None:
    add(store, None)
    add(store, "1")
    version = add(store, "2", anchor="1", metrics={"gate_anchor_kl": kl})
    reason = used_up(store, anchor, version, 30.0)
    assert (reason is None) == allowed
    if reason is not None:
        assert reason.rule == "anchor"
        assert f"too far from the anchor policy, 1: KL {kl:.1f} nats a response" in reason
        assert f"name {version} if it is good" in reason


def test_dpo_and_kto_measure_their_log_ratios_against_the_reference_that_they_are_given() -> None:
    pairs: list[DpoProgress] = []
    settings = DpoSettings.model_validate({"max_steps": 1, "batch_pairs": 8})
    train_policy(small_llama(0), ENCODER, PAIRS, [], settings, RunControl(on_step=pairs.append), reference=OTHER)
    thumbs: list[KtoProgress] = []
    kto = KtoSettings.model_validate({"max_steps": 1, "batch_thumbs": 8})
    train_kto(small_llama(0), ENCODER, THUMBS, [], kto, RunControl(on_step=thumbs.append), reference=OTHER)
    rows = train_policy_ratio()
    assert pairs[0].figures.chosen_log_ratio == pytest.approx(rows, rel=1e-4)
    assert thumbs[0].figures.wanted_log_ratio == pytest.approx(rows, rel=1e-4)


def train_policy_ratio() -> float:
    """Mean log(policy / other) of the chosen responses, by transformers alone."""
    total = 0.0
    for prompt in PROMPTS:
        (row,) = ENCODER.completions([(prompt, ["please do"])])[0]
        ids, start = torch.tensor([[*row.prompt, *row.response]]), len(row.prompt)
        for sign, model in ((1, small_llama(0)), (-1, small_llama(1))):
            with torch.no_grad():
                logprobs = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
            total += sign * logprobs[start - 1 :].sum().item()
    return total / len(PROMPTS)


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_learning_from_own_answers_has_the_reference_that_it_is_given(weights: str) -> None:
    settings = OnlineSettings.model_validate({"weights": weights})
    policy, other = small_llama(0), small_llama(1)
    learner = Learner(policy, ENCODER.format.pad, settings, has_critic=False, reference=other)
    said = [r for group in roll_out(small_llama(1), ENCODER, PROMPTS[:2], Sampling(2, 6, seed=1)) for r in group]
    found = learner.reference_logprobs([r.sequence for r in said], 6, 1.0)
    for row, rollout in zip(found, said, strict=True):
        assert row[: len(rollout.logprobs)].tolist() == pytest.approx(rollout.logprobs, abs=1e-4)


@pytest.mark.learning
def test_many_rounds_go_far_from_the_first_policy_unless_they_are_held_to_it() -> None:
    (pinned, _), (reset, _) = (drift(learning_seed(), 10, is_pinned=is_pinned) for is_pinned in (True, False))
    assert reset[-1] > 2 * pinned[-1], (pinned, reset)


@pytest.mark.learning
def test_rounds_are_held_to_the_anchor_and_stop_when_the_budget_is_used_up(tmp_path: Path, redis_url: str) -> None:
    setting = Setting(tmp_path, redis_url, algorithm="dpo")
    assert setting.round().run() == "promoted", setting.current.state
    first = setting.store.manifest("policy", 2)
    assert (first.parent, first.notes["anchor"]) == ("1", "1")

    last = setting.ledger.last_stream_id
    assert last is not None
    second = RoundState(2, "training", "", last, 60, 60, seed=learning_seed(8), parent="2")
    setting.current.reach(second)
    spent = {"max_anchor_kl": first.metrics["gate_anchor_kl"] / 2}
    setting.settings = setting.settings.model_copy(
        update={
            "policy": setting.settings.policy.model_copy(
                update={"gate": setting.settings.policy.gate.model_copy(update=spent)}
            )
        }
    )
    assert setting.round().run() == "refused"
    (reasons,) = (tmp_path / "work" / "refused").glob("*/reasons.json")
    assert "the live policy, 2, is too far from the anchor policy, 1" in reasons.read_text()
    assert not (tmp_path / "work" / "reports" / "policy-2").exists()  # nothing was trained
