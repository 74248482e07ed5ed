"""Training a tiny reward model on simulated preferences."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.learning_runs import learning_seed
from support.reward_bases import encoder_for, save_base

from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList, Record, TiedPair
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.reward.evaluate import head_margins
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import Progress, train_reward

FAST = RewardTraining(
    learning_rate=3e-3,
    head_learning_rate=1e-2,
    epochs=3,
    sequences_per_step=16,
    checkpoint_every_steps=0,
    seed=learning_seed(),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), learning_seed())


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoder_for("bert", max_length=96)


def pair(i: int) -> Pair:
    """Polite beats rude, whatever the length."""
    chance = random.Random(i)
    polite = " ".join(["thanks", *["ok"] * chance.randint(0, 8)])
    rude = " ".join(["no", *["ok"] * chance.randint(0, 8)])
    return Pair((Turn("user", f"q{i}"),), polite, rude, event_id=f"e{i}")


TRAIN = [pair(i) for i in range(120)]
HELDOUT = [pair(i) for i in range(1_000, 1_040)]


def weights(model: RewardModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def at_level(base: Path, level: float, seed: int = 0) -> RewardModel:
    """A start whose logits all are about ``level``, as those of a trained reward model may be."""
    model = RewardModel.from_base(base, heads=2, seed=seed)
    with torch.no_grad():
        model.heads.bias.fill_(level)
    return model


def level_of(model: RewardModel, encoder: Encoder, pairs: Sequence[Pair] = HELDOUT) -> float:
    sequences = [encoder.pair(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
    with torch.inference_mode():
        return float(logits_of(model, sequences, encoder.format.pad, 4096).mean())


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.learning
def test_it_learns_what_was_preferred_and_not_the_length(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base, heads=3, seed=learning_seed())
    seen: list[Progress] = []
    outcome = train_reward(model, encoder, TRAIN, HELDOUT, FAST, on_progress=seen.append)
    assert outcome.validation.accuracy >= 0.95
    assert outcome.validation.accuracy_shorter_won >= 0.9
    assert 0.4 < outcome.validation.length_baseline < 0.8
    assert outcome.figures["validation_accuracy"] == outcome.validation.accuracy
    assert [p.step for p in seen] == list(range(1, outcome.steps + 1))
    assert sum(p.validation is not None for p in seen) == FAST.epochs
    assert seen[-1].loss < seen[0].loss
    # what the gate sees of the returned model is what was reported
    margins = head_margins(model, encoder, HELDOUT)
    assert float((margins.mean(1) > 0).mean()) == outcome.validation.accuracy


def test_an_interrupted_run_ends_in_the_same_weights(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    settings = FAST.model_copy(update={"checkpoint_every_steps": 5, "evaluate_every_steps": 7, "dropout": True})
    whole = RewardModel.from_base(base, heads=2)
    expected = train_reward(whole, encoder, TRAIN, HELDOUT, settings)

    class Killed(Exception):
        pass

    def kill_at_18(progress: Progress) -> None:
        if progress.step == 18:
            raise Killed

    with pytest.raises(Killed):
        train_reward(
            RewardModel.from_base(base, heads=2), encoder, TRAIN, HELDOUT, settings, tmp_path / "c", kill_at_18
        )
    torch.manual_seed(99)
    steps: list[int] = []
    resumed = RewardModel.from_base(base, heads=2, seed=5)
    outcome = train_reward(
        resumed, encoder, TRAIN, HELDOUT, settings, tmp_path / "c", lambda progress: steps.append(progress.step)
    )
    assert steps[0] == 16
    assert are_equal(weights(resumed), weights(whole))
    assert outcome.best_step == expected.best_step
    assert outcome.validation == expected.validation
    assert outcome.figures["train_tokens"] == expected.figures["train_tokens"]
    assert not (tmp_path / "c").exists()


def test_a_run_asked_to_stop_saves_itself(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    whole = RewardModel.from_base(base, heads=2)
    train_reward(whole, encoder, TRAIN, HELDOUT, FAST)
    asked = iter([False] * 4 + [True])
    with pytest.raises(TrainingStopped):
        train_reward(
            RewardModel.from_base(base, heads=2),
            encoder,
            TRAIN,
            HELDOUT,
            FAST,
            tmp_path,
            should_stop=lambda: next(asked),
        )
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 4
    resumed = RewardModel.from_base(base, heads=2)
    train_reward(resumed, encoder, TRAIN, HELDOUT, FAST, tmp_path)
    assert are_equal(weights(resumed), weights(whole))


@pytest.mark.learning
def test_a_start_s_own_level_is_kept_and_learning_is_the_same_at_any_level(base: Path, encoder: Encoder) -> None:
    settings = FAST.model_copy(update={"centring": 0.1})
    outcomes, moved = [], []
    for level in (0.0, 7.0):
        model = at_level(base, level, learning_seed())
        # Of what it learns from. Held-out questions are a digit longer, which moved their level by up to 0.44.
        before = level_of(model, encoder, TRAIN)
        outcomes.append(train_reward(model, encoder, TRAIN, HELDOUT, settings))
        moved.append(level_of(model, encoder, TRAIN) - before)
    assert abs(moved[1]) < 0.5  # at most 0.08 with seeds 0 to 5; centred on 0, the level falls by 7
    assert moved[1] == pytest.approx(moved[0], abs=0.05)
    low, high = outcomes
    assert high.validation.loss == pytest.approx(low.validation.loss, rel=0.02)
    assert high.figures["train_last_loss"] == pytest.approx(low.figures["train_last_loss"], rel=0.02)


@pytest.mark.learning
def test_thumbs_do_not_pull_a_start_s_level_to_0(base: Path, encoder: Encoder) -> None:
    thumbs = [
        Labelled(replace_prompt(i), f"{text} ok", label, event_id=f"{text}{i}")
        for i in range(60)
        for text, label in (("thanks", 1.0), ("no", 0.0))
    ]
    model = at_level(base, 7.0, learning_seed())
    before = level_of(model, encoder)
    train_reward(model, encoder, thumbs, [], FAST)
    assert level_of(model, encoder) == pytest.approx(before, abs=1.0)


def test_a_resumed_run_is_centred_on_the_start_s_level(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    settings = FAST.model_copy(update={"centring": 0.5, "epochs": 1})
    whole, resumed = at_level(base, 7.0), at_level(base, 7.0)
    train_reward(whole, encoder, TRAIN, [], settings)
    asked = iter([False] * 6 + [True])
    with pytest.raises(TrainingStopped):
        train_reward(resumed, encoder, TRAIN, [], settings, tmp_path, should_stop=lambda: next(asked))
    other = at_level(base, -3.0, seed=5)
    train_reward(other, encoder, TRAIN, [], settings, tmp_path)
    assert are_equal(weights(other), weights(whole))


@pytest.mark.parametrize("change", ["data", "settings", "damage"])
def test_a_checkpoint_that_does_not_fit_is_not_used(base: Path, encoder: Encoder, tmp_path: Path, change: str) -> None:
    train, settings = TRAIN[:40], FAST
    asked = iter([False] * 2 + [True])
    with pytest.raises(TrainingStopped):
        train_reward(
            RewardModel.from_base(base), encoder, train, [], settings, tmp_path, should_stop=lambda: next(asked)
        )
    if change == "data":
        train = TRAIN[:39]
    elif change == "settings":
        settings = FAST.model_copy(update={"learning_rate": 1e-3})
    else:
        (tmp_path / "2" / checkpoint.TENSORS).write_bytes(b"damaged")
    fresh, resumed = RewardModel.from_base(base), RewardModel.from_base(base)
    train_reward(fresh, encoder, train, [], settings)
    train_reward(resumed, encoder, train, [], settings, tmp_path)
    assert are_equal(weights(fresh), weights(resumed))


@pytest.mark.learning
def test_every_kind_of_signal_teaches(base: Path, encoder: Encoder) -> None:
    prompt = (Turn("user", "q"),)
    kinds: list[list[Record]] = [
        [RankedList(replace_prompt(i), ("thanks", "ok", "no"), event_id=f"r{i}") for i in range(60)],
        [
            record
            for i in range(60)
            for record in (
                Labelled(replace_prompt(i), "thanks ok", 1.0, event_id=f"u{i}"),
                Labelled(replace_prompt(i), "no ok", 0.0, event_id=f"d{i}"),
            )
        ],
    ]
    for records in kinds:
        model = RewardModel.from_base(base, heads=2, seed=learning_seed())
        train_reward(model, encoder, records, [], FAST.model_copy(update={"epochs": 6}))
        assert head_margins(model, encoder, [Pair(prompt, "thanks", "no")]).mean() > 1


def replace_prompt(i: int) -> tuple[Turn, ...]:
    return (Turn("user", f"q{i}"),)


@pytest.mark.learning
def test_ties_bring_scores_together(base: Path, encoder: Encoder) -> None:
    probe = [Pair((Turn("user", "q"),), "thanks", "no")]
    ties = [TiedPair(replace_prompt(i), "thanks", "no", event_id=f"t{i}") for i in range(60)]
    model = RewardModel.from_base(base, heads=2, seed=learning_seed())
    train_reward(model, encoder, TRAIN, [], FAST)
    before = abs(head_margins(model, encoder, probe)).mean()
    train_reward(model, encoder, ties, [], FAST)
    assert abs(head_margins(model, encoder, probe)).mean() < before / 2


@pytest.mark.learning
def test_bootstrap_keeps_the_heads_apart(base: Path, encoder: Encoder) -> None:
    spread = {}
    for scheme in ("none", "poisson", "bernoulli"):
        model = RewardModel.from_base(base, heads=4, seed=learning_seed())
        with torch.no_grad():  # the same start: all difference comes from the signals that each head sees
            model.heads.weight.copy_(model.heads.weight[:1].expand(4, -1))
        settings = FAST.model_copy(update={"bootstrap": scheme, "epochs": 1})
        spread[scheme] = train_reward(model, encoder, TRAIN, HELDOUT, settings).validation.head_spread
    assert spread["none"] < 1e-6
    assert spread["poisson"] > 1e-3
    assert spread["bernoulli"] > 1e-3


@pytest.mark.learning
def test_it_stops_early_and_keeps_the_best_weights(base: Path, encoder: Encoder) -> None:
    # Held-out people want the opposite: every step makes the held-out loss worse.
    opposite = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in HELDOUT]
    settings = FAST.model_copy(update={"evaluate_every_steps": 2, "patience": 2, "epochs": 5})
    model = RewardModel.from_base(base, heads=2, seed=learning_seed())
    losses: list[float] = []
    outcome = train_reward(
        model,
        encoder,
        TRAIN,
        opposite,
        settings,
        on_progress=lambda p: losses.append(p.validation.loss) if p.validation else None,
    )
    assert outcome.steps < 5 * 15
    assert outcome.best_step == 0  # the start was better than what any step made of it
    assert outcome.validation.loss < min(losses)
    kept = np.logaddexp(0, -head_margins(model, encoder, opposite).mean(1)).mean()
    assert kept == pytest.approx(outcome.validation.loss, rel=1e-6)


def test_the_linear_start_alone_is_a_run_without_steps(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base, heads=2, seed=learning_seed())
    trunk = {name: p.clone() for name, p in model.trunk.named_parameters()}
    outcome = train_reward(model, encoder, TRAIN, HELDOUT, FAST.model_copy(update={"epochs": 0}))
    assert (outcome.steps, outcome.best_step) == (0, 0)
    assert all(torch.equal(p, trunk[name]) for name, p in model.trunk.named_parameters())
    assert outcome.validation.accuracy > 0.9


def test_over_length_examples_are_counted_and_dropped_when_asked(base: Path, encoder: Encoder) -> None:
    long = [Pair(replace_prompt(i), "thanks " * 60, "no", event_id=f"l{i}") for i in range(3)]
    kept = train_reward(RewardModel.from_base(base), encoder, [*TRAIN[:20], *long], [], FAST)
    assert (kept.figures["train_examples"], kept.figures["train_truncated"]) == (23, 3)
    dropping = FAST.model_copy(update={"over_length": "drop"})
    dropped = train_reward(RewardModel.from_base(base), encoder, [*TRAIN[:20], *long], [], dropping)
    assert (dropped.figures["train_examples"], dropped.figures["train_dropped_over_length"]) == (20, 3)


def test_nothing_to_train_on_is_an_error(base: Path, encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        train_reward(RewardModel.from_base(base), encoder, [], HELDOUT, FAST)


def test_frozen_layers_stay_as_they_were(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base)
    model.add_words()
    model.add_phrases()
    before = weights(model)
    train_reward(model, encoder, TRAIN[:40], [], FAST.model_copy(update={"frozen_layers": 1}))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any("embeddings" in name or "layer.0." in name for name in changed)
    assert any("layer.1." in name for name in changed)
    assert "heads.weight" in changed
