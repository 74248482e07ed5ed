"""KTO on a tiny Llama: what it learns from thumbs, exact resume, and whole rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.learning_runs import learning_seed
from support.policy_rounds import Setting, thumb_rows
from support.policy_versions import byte_encoder, small_llama

from rewardloop.formats.text import Turn
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.data.preferences import Labelled, thumbs_of
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.policy.kto_train import KtoProgress, encode_thumbs, train_kto
from rewardloop_trainer.policy.offline_settings import KtoSettings

ENCODER = byte_encoder(64)
KTO = KtoSettings.model_validate({"learning_rate": 2e-3, "batch_thumbs": 8, "epochs": 4})


def asked(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


def thumbs(prompts: range, every: int = 1) -> list[Labelled]:
    """One wanted answer to each ``every``-th prompt, one unwanted answer to each."""
    wanted = [Labelled(asked(f"q{i}"), "please do", 1.0) for i in prompts[::every]]
    return wanted + [Labelled(asked(f"q{i}"), "no way", 0.0) for i in prompts]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.learning
@pytest.mark.parametrize("every", [1, 4])  # with 4 four fifths of the thumbs are down
def test_wanted_answers_become_likelier_and_unwanted_ones_less_on_prompts_it_did_not_see(every: int) -> None:
    seen: list[KtoProgress] = []
    outcome = train_kto(
        small_llama(learning_seed()),
        ENCODER,
        thumbs(range(32), every),
        thumbs(range(90, 98)),
        KTO,
        RunControl(on_step=seen.append),
        seed=learning_seed(),
    )
    first, figures = seen[0].figures, outcome.figures
    # None: the first step drew no thumb of that kind.
    assert [first.wanted_log_ratio or 0, first.unwanted_log_ratio or 0, first.kl] == pytest.approx([0, 0, 0], abs=1e-4)
    assert figures["heldout_wanted_log_ratio"] > 5
    assert figures["heldout_unwanted_log_ratio"] < -5
    assert figures["heldout_accuracy"] == 1.0
    assert figures["heldout_loss"] < 0.5
    assert figures["train_thumbs"] == 32 + 32 // every
    assert figures["train_thumbs_wanted"] == 32 // every


def test_each_kind_counts_alike_as_a_whole_however_often_its_thumbs_were_given() -> None:
    once = thumbs(range(8), every=4)
    four_times = [thumb for thumb in once for _ in range(4 if thumb.label else 1)]
    trained = []
    for data in (once, four_times):
        model = small_llama()
        train_kto(model, ENCODER, data, [], KTO.model_copy(update={"max_steps": 2}))
        trained.append(weights(model))
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], atol=1e-5, rtol=1e-4)


def test_ratings_count_by_their_half_of_the_scale_and_texts_that_repeat_become_one() -> None:
    records = [
        Labelled(asked("a"), "x", 0.9),
        Labelled(asked("a"), "x", 1.0, weight=0.5),
        Labelled(asked("a"), "x", 0.25),
        Labelled(asked("a"), "y", 0.5),
        Labelled(asked("a"), "z" * 100, 1.0),
    ]
    encoded = encode_thumbs(ENCODER, thumbs_of(records))
    assert [(thumb.is_wanted, thumb.weight) for thumb in encoded.thumbs] == [(True, 1.5), (False, 1.0)]
    assert (encoded.merged, encoded.over_length) == (1, 1)


def test_how_a_step_is_split_into_forward_passes_changes_nothing() -> None:
    trained = []
    for budget in (1, 100_000):
        model = small_llama().double()
        settings = KTO.model_copy(update={"max_steps": 2, "micro_batch_tokens": budget})
        train_kto(model, ENCODER, thumbs(range(8)), [], settings)
        trained.append(weights(model))
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], atol=1e-5, rtol=1e-4)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, stopped, resumed = small_llama(), small_llama(), small_llama()
    data = thumbs(range(8))
    train_kto(whole, ENCODER, data, [], KTO, seed=3)
    seen: list[KtoProgress] = []
    with pytest.raises(TrainingStopped):
        train_kto(
            stopped, ENCODER, data, [], KTO, RunControl(tmp_path / "c", seen.append, lambda: len(seen) == 3), seed=3
        )
    train_kto(resumed, ENCODER, data, [], KTO, RunControl(tmp_path / "c", seen.append), seed=3)
    assert [done.step for done in seen] == list(range(1, 9))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert not (tmp_path / "c").exists()


def test_without_thumbs_there_is_nothing_to_train_on() -> None:
    too_long = [Labelled(asked("a"), "z" * 100, 1.0)]
    for nothing in ([], too_long):
        with pytest.raises(ValueError, match="no thumb to train on"):
            train_kto(small_llama(), ENCODER, nothing, [], KTO)


@pytest.mark.learning
def test_a_round_learns_from_thumbs_and_goes_live(tmp_path: Path, redis_url: str) -> None:
    learning = {"algorithm": "kto", "kto": {"learning_rate": 1e-2, "batch_thumbs": 8, "epochs": 4}}
    setting = Setting(tmp_path, redis_url, more=thumb_rows(60, "a", "bbbb"), **learning)
    assert setting.round().run() == "promoted", setting.current.state
    manifest = setting.store.manifest("policy", 2)
    assert manifest.notes["method"] == "kto"
    assert manifest.metrics["gate_win_rate"] > 0.8
    assert manifest.metrics["heldout_accuracy"] > 0.9
    assert manifest.metrics["heldout_wanted_log_ratio"] > 0 > manifest.metrics["heldout_unwanted_log_ratio"]


@pytest.mark.parametrize(("algorithm", "reason"), [("kto", "kto learns from thumbs"), ("auto", "no pair, no thumb")])
def test_a_round_of_ties_says_that_there_is_nothing_to_learn(
    tmp_path: Path, redis_url: str, algorithm: str, reason: str
) -> None:
    ties = []
    for i in range(40):
        event = feedback_pb2.FeedbackEvent(event_id=f"t{i}", responses=["a", "b"])
        event.prompt.text = f"q{i}"
        event.tie.first, event.tie.second = 0, 1
        event.arrival_time.FromSeconds(1_700_000_000 + i)
        ties.append(Recorded(f"{1_700_000_000_000 + i}-0", event))
    setting = Setting(tmp_path, redis_url, choices=0, more=ties, algorithm=algorithm)
    assert setting.round().run() == "refused"
    assert reason in (tmp_path / "work" / "refused" / "policy-1" / "reasons.json").read_text()
