"""Policy training: the first step's numbers, learning, exact resume, and a whole round against a server."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.learning_runs import learning_seed
from support.policy_rounds import Setting, fake_server
from support.policy_versions import byte_encoder, small_llama

from rewardloop.formats.text import Turn
from rewardloop_client import Unreachable
from rewardloop_trainer.data.completions import Completion, encode_completions, sequence_logprobs, token_logprobs
from rewardloop_trainer.data.dialogues import Dialogue
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.policy.dpo_train import DpoProgress, encode_pairs, train_policy
from rewardloop_trainer.policy.offline_settings import DpoSettings
from rewardloop_trainer.policy.sft import train_sft
from rewardloop_trainer.policy.sft_settings import SftSettings
from rewardloop_trainer.rounds.pauses import Interrupted, ServerAway

ENCODER = byte_encoder(64)
DPO = DpoSettings.model_validate(
    {"learning_rate": 2e-3, "batch_pairs": 4, "epochs": 2, "sft_weight": 0.0, "seed": learning_seed()}
)


def copy_files(version: Path, directory: Path) -> None:
    """Copy a version's files without its manifest."""
    shutil.copytree(version, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))


def asked(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


def polite_pairs(count: int, start: int = 0) -> list[Pair]:
    return [Pair(asked(f"q{i}"), "please do", "no way", event_id=str(i)) for i in range(start, start + count)]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_token_logprobs_are_those_of_each_sequence_alone_and_of_its_completion_only() -> None:
    model = small_llama()
    rows = [Completion((5, 6, 7, 8, 9, 1), 3), Completion((5, 1), 1), Completion((9, 8, 7, 6, 5, 4, 3, 2, 1), 8)]
    with torch.no_grad():
        logprobs, is_completion = token_logprobs(model, rows, 0)
    assert is_completion.sum(-1).tolist() == [3, 1, 1]
    for i, row in enumerate(rows):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            alone = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(-1)[row.start - 1 :]
        torch.testing.assert_close(logprobs[i][is_completion[i]], alone, atol=1e-5, rtol=0)
    budgeted = sequence_logprobs(model, rows, 0, token_budget=1)
    torch.testing.assert_close(budgeted, logprobs.sum(-1), atol=1e-5, rtol=0)


def test_over_length_sequences_are_left_out_not_cut() -> None:
    short, long = encode_completions(ENCODER, [(asked("hi"), "yes"), (asked("hi"), "y" * 100)])
    assert short is not None
    assert short.ids[-1] == 1
    assert long is None


def test_pairs_of_equal_texts_become_one_with_their_weight() -> None:
    pairs = [
        Pair(asked("a"), "x", "y", weight=1.0, margin=0.8),
        Pair(asked("a"), "x", "y", weight=0.5, margin=0.2),
        Pair(asked("a"), "y", "x"),
        Pair(asked("a"), "same", "same"),
        Pair(asked("a"), "x", "z" * 100),
    ]
    encoded = encode_pairs(ENCODER, pairs)
    assert [p.weight for p in encoded.pairs] == [1.5, 1.0]
    assert [p.strength for p in encoded.pairs] == pytest.approx([0.6, 0.0])
    assert (encoded.merged, encoded.identical, encoded.over_length) == (1, 1, 1)


@pytest.mark.parametrize(("loss", "expected"), [("sigmoid", math.log(2)), ("ipo", 25.0), ("hinge", 1.0)])
def test_before_the_first_step_policy_and_reference_are_equal(loss: str, expected: float) -> None:
    seen: list[DpoProgress] = []
    settings = DPO.model_copy(update={"loss": loss})
    train_policy(small_llama(), ENCODER, polite_pairs(8), [], settings, RunControl(on_step=seen.append))
    first = seen[0].figures
    assert first.loss == pytest.approx(expected, rel=1e-4)
    assert first.margin == pytest.approx(0, abs=1e-5)
    assert first.kl == pytest.approx(0, abs=1e-5)


@pytest.mark.learning
def test_it_learns_what_was_preferred_on_prompts_it_did_not_see() -> None:
    model = small_llama(learning_seed())
    outcome = train_policy(model, ENCODER, polite_pairs(32), polite_pairs(8, start=90), DPO)
    assert outcome.figures["heldout_accuracy"] == 1.0
    assert outcome.figures["heldout_margin"] > 1
    assert outcome.figures["heldout_kl"] > 0
    assert outcome.steps == 16


@pytest.mark.learning
def test_the_sft_term_holds_the_chosen_responses_up() -> None:
    def chosen(sft_weight: float) -> float:
        settings = DPO.model_copy(update={"sft_weight": sft_weight})
        pairs = polite_pairs(16)
        outcome = train_policy(small_llama(learning_seed()), ENCODER, pairs, pairs, settings)
        return outcome.figures["train_chosen_log_ratio"]

    assert chosen(1.0) - chosen(0.0) > 1


def test_how_a_step_is_split_into_forward_passes_changes_nothing() -> None:
    trained = []
    for budget in (1, 100_000):
        model = small_llama().double()
        settings = DPO.model_copy(update={"max_steps": 2, "micro_batch_tokens": budget})
        train_policy(model, ENCODER, polite_pairs(8), [], settings)
        trained.append(weights(model))
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], atol=1e-5, rtol=1e-4)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, stopped = small_llama(), small_llama()
    train_policy(whole, ENCODER, polite_pairs(16), [], DPO)
    steps = 0

    def stop_after_three() -> bool:
        return steps >= 3

    def count(_: DpoProgress) -> None:
        nonlocal steps
        steps += 1

    with pytest.raises(TrainingStopped):
        train_policy(stopped, ENCODER, polite_pairs(16), [], DPO, RunControl(tmp_path / "c", count, stop_after_three))
    resumed, seen = small_llama(), []
    train_policy(resumed, ENCODER, polite_pairs(16), [], DPO, RunControl(tmp_path / "c", seen.append))
    assert [p.step for p in seen] == [4, 5, 6, 7, 8]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_of_other_pairs_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped):
        train_policy(
            small_llama(), ENCODER, polite_pairs(16), [], DPO, RunControl(tmp_path / "c", should_stop=lambda: True)
        )
    seen: list[DpoProgress] = []
    train_policy(small_llama(), ENCODER, polite_pairs(12), [], DPO, RunControl(tmp_path / "c", seen.append))
    assert seen[0].step == 1


@pytest.mark.learning
def test_sft_learns_completions_and_weighs_tokens_not_rows() -> None:
    model = small_llama(learning_seed())
    examples = [(asked("hi"), "yes"), (asked("hello there"), "certainly, of course")]
    rows = [row for row in encode_completions(ENCODER, examples) if row is not None]
    expected = -sequence_logprobs(model, rows, 0, 10_000).sum().item() / sum(row.tokens for row in rows)
    losses: list[float] = []
    settings = SftSettings.model_validate(
        {"epochs": 60, "learning_rate": 1e-2, "micro_batch_tokens": 1, "seed": learning_seed()}
    )
    dialogues = [Dialogue.answered(prompt, text) for prompt, text in examples]
    outcome = train_sft(model, ENCODER, dialogues, settings, lambda p: losses.append(p.loss))
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    assert outcome.last_loss < 0.1


def test_the_trainer_never_imports_the_server() -> None:
    code = (
        "import sys, rewardloop_trainer.daemon, rewardloop_trainer.rounds.policy_round, rewardloop_trainer.policy.sft\n"
        "sys.exit(any(name.split('.')[0] == 'rewardloop_server' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.learning
def test_a_round_trains_judges_publishes_and_promotes(tmp_path: Path, redis_url: str) -> None:
    setting = Setting(tmp_path, redis_url)
    assert setting.round().run() == "promoted"
    assert setting.current.state.phase == "promoted"
    assert setting.server.get_version("policy").version == "2"
    manifest = setting.store.manifest("policy", 2)
    assert manifest.parent == "1"
    assert manifest.metrics["gate_win_rate"] > 0.8
    assert manifest.metrics["heldout_accuracy"] > 0.9
    heldout = manifest.metrics["data_heldout"]  # each question has one choice
    assert manifest.metrics["gate_prompts"] == heldout
    assert 10 <= heldout <= 26  # 18 expected, standard deviation 3.5
    assert manifest.metrics["heldout_overlap_near"] == 0.0
    assert 25 <= manifest.metrics["data_new"] <= 48  # the others are a judge's
    assert manifest.data is not None
    assert manifest.data.signals == 60
    files = set(manifest.files)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert "generation_config.json" in files
    assert setting.store.fetch("policy", 2).is_dir()


def test_a_round_whose_pairs_are_all_too_long_is_refused_once_with_how_many_and_why(
    tmp_path: Path, redis_url: str
) -> None:
    setting = Setting(tmp_path, redis_url)
    parent = setting.store.fetch("policy", 1)
    short = replace(setting.store.manifest("policy", 1), max_length=4)
    setting.store.publish(short, lambda directory: copy_files(parent, directory))
    setting.current.reach(replace(setting.current.state, parent="2"))
    assert setting.round().run() == "refused"
    (reason,) = json.loads((setting.settings.work_dir / "refused" / "policy-1" / "reasons.json").read_text())["reasons"]
    trained = int(reason.partition("of ")[2].partition(",")[0])
    assert trained > 20
    assert reason.startswith(f"there is no pair to train on: of {trained}, {trained} are longer than 4 tokens")


@pytest.mark.learning
def test_a_round_that_does_not_win_is_refused_and_kept_with_its_reasons(tmp_path: Path, redis_url: str) -> None:
    setting = Setting(tmp_path, redis_url, server=fake_server(sign=-1))
    assert setting.round().run() == "refused"
    assert setting.store.versions("policy") == [1]
    kept = json.loads((tmp_path / "work" / "refused" / "policy-1" / "reasons.json").read_text())
    assert any("win rate" in reason for reason in kept["reasons"])
    assert setting.round().run() == "refused"


@pytest.mark.learning
def test_a_stopped_round_goes_on_and_a_missing_server_is_waited_for(tmp_path: Path, redis_url: str) -> None:
    server = fake_server()
    setting = Setting(tmp_path, redis_url, server=server)
    setting.stop.set()
    with pytest.raises(Interrupted):
        setting.round().run()
    setting.stop.clear()
    server.fail("score_batch", Unreachable("gone"), times=4)
    with pytest.raises(ServerAway):
        setting.round().run()
    assert setting.current.state.phase == "trained"
    assert setting.round().run() == "promoted"
    assert setting.store.versions("policy") == [1, 2]
