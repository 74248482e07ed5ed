"""The anchor that rounds are held to: which version it is, what the reference changes, and the budget of KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.learning_runs import learning_seed
from support.policy_rounds import GATE, Setting
from support.policy_versions import byte_encoder, publish_policy, quick_policy, small_llama
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
from rewardloop_trainer.policy.reference import Reference, sampled_kl
from rewardloop_trainer.policy.rollouts import Sampling, roll_out
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.rounds.policy_anchor import UnusableAnchor, anchor_of, over_budget
from rewardloop_trainer.rounds.trainer_state import RoundState

ENCODER = byte_encoder(64)
PROMPTS = [(Turn("user", f"q{i}"),) for i in range(8)]
PAIRS = [Pair(prompt, "please do", "no way") for prompt in PROMPTS]
THUMBS = [Labelled(prompt, "please do", 1.0) for prompt in PROMPTS]
OTHER = Reference("other", lambda: small_llama(1))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def add(store: ModelStore, parent: str | None, anchor: str = "") -> str:
    model, encoder = small_llama(0), ENCODER
    version = publish_policy(store, model, encoder, parent).version
    if anchor:
        manifest = store.manifest("policy", version)
        noted = Manifest(model="policy", parent=parent, text_format=manifest.text_format, notes={"anchor": anchor})
        version = store.publish(noted, lambda directory: model.save_pretrained(directory)).version
    return str(version)


def test_the_anchor_is_the_oldest_of_the_line_until_a_person_names_another(store: ModelStore) -> None:
    first = add(store, None)
    second = add(store, first)
    other = add(store, None)
    third = add(store, second)
    assert [anchor_of(store, version) for version in (first, second, third, other)] == [first, first, first, other]
    assert anchor_of(store, third, second) == second
    held = add(store, third, anchor=second)
    assert anchor_of(store, held) == second
    assert anchor_of(store, held, third) == third
    with pytest.raises(UnusableAnchor, match="the store has no version 99 of policy: name another"):
        anchor_of(store, held, "99")
    with pytest.raises(UnusableAnchor, match="no version 77"):
        anchor_of(store, add(store, held, anchor="77"))


def test_a_line_whose_first_versions_are_gone_is_held_to_the_oldest_that_is_left(store: ModelStore) -> None:
    orphan = add(store, "41")
    assert anchor_of(store, add(store, orphan)) == orphan


@pytest.mark.parametrize(("kl", "allowed"), [(0.0, True), (30.0, True), (30.1, False), (None, False)])
def test_a_budget_that_is_used_up_says_what_to_do(kl: float | None, allowed: bool) -> None:
    reason = over_budget(kl, 30.0, "4")
    assert (reason is None) == allowed
    if reason is not None:
        assert reason.rule == "kl_budget"
        assert "from anchor version 4" in reason
        assert "name the live version as policy.anchor" in reason


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


def test_the_sampled_kl_is_0_to_itself_and_grows_with_distance() -> None:
    settings = PolicySettings.model_validate({"gate": {"max_new_tokens": 8}})
    policy = small_llama(0)
    assert sampled_kl(policy, policy, ENCODER, PROMPTS, settings) == pytest.approx(0, abs=1e-4)
    far = sampled_kl(policy, small_llama(1), ENCODER, PROMPTS, settings)
    assert far is not None
    assert far > 0.5
    assert sampled_kl(policy, policy, byte_encoder(4), PROMPTS, settings) is None


@pytest.mark.learning
def test_many_rounds_go_far_from_the_first_policy_unless_they_are_held_to_it() -> None:
    (pinned, _), (reset, _) = (drift(learning_seed(), 10, is_pinned=is_pinned) for is_pinned in (True, False))
    assert reset[-1] > 2 * pinned[-1], (pinned, reset)


@pytest.mark.learning
def test_rounds_are_held_to_the_first_version_and_stop_when_the_budget_is_used_up(
    tmp_path: Path, redis_url: str
) -> None:
    setting = Setting(tmp_path, redis_url, algorithm="dpo")
    assert setting.round().run() == "promoted", setting.current.state
    first = setting.store.manifest("policy", 2)
    assert first.notes["anchor"] == "1"
    assert first.metrics["anchor_kl"] == pytest.approx(first.metrics["gate_kl"], rel=0.5)

    tight: dict[str, Any] = {"algorithm": "dpo", "kl_budget": first.metrics["anchor_kl"] / 2}
    over = Setting(tmp_path / "over", redis_url, **tight)
    assert over.round().run() == "refused"
    assert over.metrics.refusals.labels(model="policy", rule="kl_budget")._value.get() == 1

    used = ModelStore(tmp_path / "used")
    publish_policy(used, *quick_policy(learning_seed()))
    manifest = used.manifest("policy", 1)
    spent = Manifest(
        model="policy",
        parent="1",
        text_format=manifest.text_format,
        max_length=manifest.max_length,
        metrics={"anchor_kl": 31.0},
        notes={"anchor": "1"},
    )
    used.publish(spent, lambda directory: None)
    before = Setting(tmp_path / "before", redis_url, store=used, algorithm="dpo", gate=GATE)
    last = before.ledger.last_stream_id
    assert last is not None
    before.current.reach(RoundState(1, "training", "", last, 60, 60, seed=7, parent="2"))
    assert before.round().run() == "refused"
    (reasons,) = (tmp_path / "before" / "work" / "refused").glob("*/reasons.json")
    assert "31.0 nats per response from anchor version 1" in reasons.read_text()
    assert not (tmp_path / "before" / "work" / "reports").exists()  # nothing was trained
