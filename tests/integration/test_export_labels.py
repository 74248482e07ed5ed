"""The score of a classifier with several labels is a sum of their logits, which is chosen or the difference of two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.head_bases import change_config, check_everywhere, chosen, logits_of, save, scores, sequences
from transformers import AutoModelForSequenceClassification

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.heads.choice import parse_weights
from rewardloop_trainer.reward.model import RewardModel

ASPECTS = ("helpfulness", "correctness", "verbosity")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_score_of_two_labels_is_their_difference(kind: str, tmp_path: Path) -> None:
    classifier = save(AutoModelForSequenceClassification, kind, tmp_path, labels=2)
    model, logits = RewardModel.from_base(tmp_path, heads=2), logits_of(classifier)
    assert model.head_note == "the checkpoint's: LABEL_1 - LABEL_0"
    check_everywhere(model, logits[:, 1] - logits[:, 0], tmp_path)


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (("POSITIVE", "NEGATIVE"), "POSITIVE - NEGATIVE"),
        (("negative", "positive"), "positive - negative"),
        (("chosen", "other"), "chosen - other"),
        (("ham", "spam"), "spam - ham"),
        (("safe", "unsafe"), "safe - unsafe"),
        (("entailment", "not_entailment"), "entailment - not_entailment"),
    ],
)
def test_names_that_say_which_of_two_labels_is_better_are_followed(
    labels: tuple[str, str], note: str, tmp_path: Path
) -> None:
    classifier = save(AutoModelForSequenceClassification, "distilbert", tmp_path, labels=2)
    change_config(tmp_path, id2label=dict(enumerate(labels)), label2id={each: i for i, each in enumerate(labels)})
    model, logits = RewardModel.from_base(tmp_path, heads=1), logits_of(classifier)
    assert model.head_note == f"the checkpoint's: {note}"
    better = labels.index(note.split(" - ")[0])
    expected = logits[:, better] - logits[:, 1 - better]
    torch.testing.assert_close(scores(model, sequences())[:, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["roberta", "llama"])
def test_the_score_of_several_labels_is_the_sum_that_was_chosen(kind: str, tmp_path: Path) -> None:
    classifier = save(AutoModelForSequenceClassification, kind, tmp_path, labels=3)
    change_config(tmp_path, id2label=dict(enumerate(ASPECTS)), label2id={each: i for i, each in enumerate(ASPECTS)})
    with pytest.raises(UnusableBase, match=r"3 labels.*--label-weights.*helpfulness, correctness, verbosity"):
        RewardModel.from_base(tmp_path)
    choice = chosen(label_weights="helpfulness=0.7,verbosity=-0.3")
    model, logits = RewardModel.from_base(tmp_path, heads=2, choice=choice), logits_of(classifier)
    assert model.head_note == "the checkpoint's: 0.7 helpfulness + -0.3 verbosity"
    expected = 0.7 * logits[:, 0] - 0.3 * logits[:, 2]
    torch.testing.assert_close(scores(model, sequences()), expected[:, None].expand(-1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_two_labels_that_are_no_alternatives_need_weights(problem: str, tmp_path: Path) -> None:
    classifier = save(AutoModelForSequenceClassification, "distilbert", tmp_path, labels=2)
    change_config(tmp_path, problem_type=problem)
    with pytest.raises(UnusableBase, match=f"problem_type {problem}.*--label-weights"):
        RewardModel.from_base(tmp_path)
    model = RewardModel.from_base(tmp_path, heads=1, choice=chosen(label_weights="LABEL_0=1,LABEL_1=0.5"))
    expected = logits_of(classifier) @ torch.tensor([1.0, 0.5])
    torch.testing.assert_close(scores(model, sequences())[:, 0], expected, atol=1e-5, rtol=0)


def test_a_weight_without_its_label_is_refused_with_the_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(AutoModelForSequenceClassification, "bert", tmp_path / "base", labels=2)
    flags = ["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store")]
    assert export_cli.main([*flags, "--label-weights", "LABEL_1=1,safety=2"]) == 1
    assert "--label-weights names safety; the labels are LABEL_0, LABEL_1" in capsys.readouterr().err


def test_weights_for_a_base_without_a_head_are_refused(tmp_path: Path) -> None:
    save(AutoModelForSequenceClassification, "bert", tmp_path, labels=2).base_model.save_pretrained(tmp_path)
    with pytest.raises(UnusableBase, match="--label-weights is for a trained head"):
        RewardModel.from_base(tmp_path, choice=chosen(label_weights="LABEL_1=1"))


@pytest.mark.parametrize("text", ["helpful", "=1", "a=1,a=2", "a=nan", "a=x", "a=0"])
def test_weights_of_another_form_are_wrong_flags(text: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        export_cli.main(["--base", str(tmp_path), "--store", str(tmp_path), f"--label-weights={text}"])
    assert ended.value.code == 2


def test_a_name_may_hold_an_equals_sign() -> None:
    assert parse_weights("a=b=1,c=-2.5") == {"a=b": 1.0, "c": -2.5}


def test_a_name_may_hold_commas() -> None:
    assert parse_weights("good, helpful=1, a,b = .5,c=-1e-2") == {"good, helpful": 1.0, "a,b": 0.5, "c": -0.01}


def test_an_export_prints_and_notes_the_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(AutoModelForSequenceClassification, "llama", tmp_path / "base", labels=2)
    assert export_cli.main(["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store")]) == 0
    note = "the checkpoint's: LABEL_1 - LABEL_0"
    assert f"rewardloop export: The score heads are {note}.\n" in capsys.readouterr().err
    assert ModelStore(tmp_path / "store").manifest("reward", 1).notes["heads"] == note
