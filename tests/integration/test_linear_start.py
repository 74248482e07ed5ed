"""Heads and tokens' weights are fitted before the trunk learns, where that helps on signals kept apart."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.reward_bases import encoder_for, save_base

from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.data.preferences import Labelled, Pair, Record, TiedPair
from rewardloop_trainer.reward.evaluate import head_margins, measure
from rewardloop_trainer.reward.examples import encode_records, logits_of
from rewardloop_trainer.reward.linear_start.fit import fit_linear_start
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining

SETTINGS = RewardTraining()
TASTE = {"good": 1.0, "fine": 0.5, "ok": 0.0, "bad": -1.0}


def pairs(count: int, seed: int, *, prompts: int, noise: float = 0.0) -> list[Pair]:
    """Answers of four words, of which the one with the better words wins."""
    chance = random.Random(seed)
    found = []
    for i in range(count):
        first, second = (chance.choices(list(TASTE), k=4) for _ in range(2))
        gap = sum(TASTE[w] for w in first) - sum(TASTE[w] for w in second)
        if gap < 0 or (noise and chance.random() < noise):
            first, second = second, first
        if gap:
            prompt = (Turn("user", f"question {i % prompts}"),)
            found.append(Pair(prompt, " ".join(first), " ".join(second), event_id=f"{seed}/{i}"))
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def encoder() -> Encoder:
    return encoder_for("llama", max_length=96)


def accuracy(model: RewardModel, encoder: Encoder) -> float:
    unseen = pairs(200, 9, prompts=200)
    return measure(unseen, head_margins(model, encoder, unseen)).accuracy


@pytest.mark.learning
@pytest.mark.parametrize("prompts", [400, 1])
def test_it_learns_which_words_win_without_a_step_of_the_trunk(base: Path, encoder: Encoder, prompts: int) -> None:
    model = RewardModel.from_base(base, heads=2)
    model.add_words()
    trunk = {name: p.clone() for name, p in model.trunk.named_parameters()}
    examples = encode_records(encoder, pairs(400, 1, prompts=prompts)).examples
    figures = fit_linear_start(model, examples, encoder.format.pad, SETTINGS)
    assert figures["start_gain"] > 0.1
    assert accuracy(model, encoder) > 0.9
    assert all(torch.equal(p, trunk[name]) for name, p in model.trunk.named_parameters())


def ordered_pairs(count: int, seed: int) -> list[Pair]:
    """Answers of the same letters, which are the tokens; the one with "no" in it wins against the one with "on"."""
    chance = random.Random(seed)
    found = []
    for i in range(count):
        rest = chance.sample(["good", "fine", "ok", "bad"], 4)
        place = chance.randrange(len(rest))
        texts = [" ".join([*rest[:place], word, *rest[place:]]) for word in ("no", "on")]
        found.append(Pair((Turn("user", f"question {i}"),), texts[0], texts[1], event_id=f"{seed}/{i}"))
    return found


@pytest.mark.learning
def test_it_learns_which_pair_of_tokens_wins(base: Path, encoder: Encoder) -> None:
    losses = []
    examples = encode_records(encoder, ordered_pairs(300, 1)).examples
    for has_phrases in (False, True):
        model = RewardModel.from_base(base, heads=2)
        model.add_words()
        if has_phrases:
            model.add_phrases()
        figures = fit_linear_start(model, examples, encoder.format.pad, SETTINGS)
        unseen = ordered_pairs(100, 9)
        losses.append(measure(unseen, head_margins(model, encoder, unseen)).loss)
    assert figures["start_phrase_ridge"] < 1_000
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.learning
def test_choices_at_random_teach_it_nothing(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base, heads=2)
    model.add_words()
    examples = encode_records(encoder, pairs(400, 1, prompts=400, noise=0.5)).examples
    model.add_phrases()
    figures = fit_linear_start(model, examples, encoder.format.pad, SETTINGS)
    assert figures["start_gain"] < 0.1
    assert model.add_words().weight.abs().max() < 0.3
    assert model.add_phrases().weight.abs().max() < 0.3


def test_too_few_pairs_change_nothing(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base, heads=2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    examples = encode_records(encoder, pairs(10, 1, prompts=10)).examples
    assert fit_linear_start(model, examples, encoder.format.pad, SETTINGS) == {}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_heads_that_start_alike_are_apart_afterwards(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base, heads=3)
    with torch.no_grad():
        model.heads.weight.copy_(model.heads.weight[:1].expand(3, -1))
    model.add_words()
    examples = encode_records(encoder, pairs(200, 1, prompts=200)).examples
    fit_linear_start(model, examples, encoder.format.pad, SETTINGS)
    unseen = pairs(100, 9, prompts=100)
    assert measure(unseen, head_margins(model, encoder, unseen)).head_spread > 0.01


def test_the_mean_of_the_heads_is_the_fit_to_all_signals(base: Path, encoder: Encoder) -> None:
    examples = encode_records(encoder, pairs(100, 1, prompts=100, noise=0.2)).examples
    unseen, margins, parts = pairs(100, 9, prompts=100), [], []
    for bootstrap in ("poisson", "none"):
        model = RewardModel.from_base(base, heads=4)
        with torch.no_grad():  # so that all heads have one margin to scale
            model.heads.weight.copy_(model.heads.weight[:1].expand(4, -1))
        fit_linear_start(
            model, examples, encoder.format.pad, RewardTraining.model_validate({"bootstrap": bootstrap, "words": False})
        )
        margins.append(head_margins(model, encoder, unseen))
        parts.append(model.heads.weight.detach().std(0).mean())
    np.testing.assert_allclose(margins[0].mean(1), margins[1].mean(1), atol=0.02 * margins[1].std())
    assert parts[0] > 10 * parts[1]


def test_the_fit_is_the_same_each_time(base: Path, encoder: Encoder) -> None:
    examples = encode_records(encoder, pairs(100, 1, prompts=100)).examples
    fitted = []
    for _ in range(2):
        model = RewardModel.from_base(base, heads=2)
        fit_linear_start(model, examples, encoder.format.pad, SETTINGS)
        fitted.append(model.heads.weight.detach().clone())
    assert torch.equal(fitted[0], fitted[1])


@pytest.mark.learning
def test_thumbs_alone_teach_it_and_set_the_threshold(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base, heads=2)
    model.add_words()
    with torch.no_grad():
        model.heads.bias.fill_(5.0)
    thumbs: list[Record] = [
        Labelled(p.prompt, text, label, event_id=f"{p.event_id}/{label}")
        for p in pairs(300, 1, prompts=300)
        for text, label in ((p.chosen, 1.0), (p.rejected, 0.0))
    ]
    figures = fit_linear_start(model, encode_records(encoder, thumbs).examples, encoder.format.pad, SETTINGS)
    assert (figures["start_pairs"], figures["start_labels"]) == (0, len(thumbs))
    assert accuracy(model, encoder) > 0.9
    rated = [encoder.pair((Turn("user", "q"),), text) for text in ("good good good good", "bad bad bad bad")]
    with torch.no_grad():
        logits = logits_of(model, rated, encoder.format.pad, 4096) - model.threshold
    assert bool((logits[0] > 0).all())
    assert bool((logits[1] < 0).all())


@pytest.mark.learning
def test_thumbs_add_to_what_few_choices_tell(base: Path, encoder: Encoder) -> None:
    few = pairs(40, 1, prompts=40, noise=0.35)
    thumbs = [
        Labelled(p.prompt, text, label, event_id=f"{p.event_id}/{label}")
        for p in pairs(300, 2, prompts=300)
        for text, label in ((p.chosen, 1.0), (p.rejected, 0.0))
    ]
    reached = []
    for records in (few, [*few, *thumbs]):
        model = RewardModel.from_base(base, heads=2)
        model.add_words()
        fit_linear_start(model, encode_records(encoder, records).examples, encoder.format.pad, SETTINGS)
        unseen = pairs(200, 9, prompts=200)
        reached.append(measure(unseen, head_margins(model, encoder, unseen)).loss)
    assert reached[1] < 0.6 * reached[0]


def test_ties_alone_move_nothing_apart(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base, heads=2)
    model.add_words()
    ties: list[Record] = [
        TiedPair(p.prompt, p.chosen, p.rejected, event_id=p.event_id) for p in pairs(200, 1, prompts=200)
    ]
    before = measure(unseen := pairs(50, 9, prompts=50), head_margins(model, encoder, unseen)).loss
    fit_linear_start(model, encode_records(encoder, ties).examples, encoder.format.pad, SETTINGS)
    assert measure(unseen, head_margins(model, encoder, unseen)).loss == pytest.approx(before, abs=0.05)
