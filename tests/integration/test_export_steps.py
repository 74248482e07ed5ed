"""A token classifier's score is that of the last step of an answer, or it is refused with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from support.head_bases import (
    change_config,
    change_tensors,
    check_everywhere,
    chosen,
    forget_architecture,
    last_states,
    logits_of,
    save,
)
from support.reward_bases import END, SEP
from support.tool_bases import tool_base
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

from rewardloop.formats.graphs.inputs import decoder_rows, tree_rows
from rewardloop.formats.store import MODEL, TOKENIZER, TORCH, ModelStore
from rewardloop.formats.text import Encoder, Turn
from rewardloop.formats.text_format import read_text_format
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.data.base_layout import decoder_layout
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.base_layout import reward_layout
from rewardloop_trainer.reward.heads.step_token import with_step_end
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import start_from

LAST = ["--step-scores", "last", "--step-token", "\\n"]


@pytest.mark.parametrize("labels", [1, 2])
def test_the_score_is_that_of_the_last_step(labels: int, tmp_path: Path) -> None:
    classifier = save(AutoModelForTokenClassification, "llama", tmp_path, labels=labels)
    model = RewardModel.from_base(tmp_path, heads=2, choice=chosen(step_scores="last", step_token="\n"))
    logits = logits_of(classifier)
    check_everywhere(model, logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0], tmp_path)


def test_a_token_classifier_that_names_no_architecture_is_one_if_steps_are_wanted(tmp_path: Path) -> None:
    save(AutoModelForTokenClassification, "llama", tmp_path, labels=2)
    forget_architecture(tmp_path)
    with pytest.raises(UnusableBase, match=r"score\.bias"):
        RewardModel.from_base(tmp_path)
    choice = chosen(step_scores="last", step_token="\n")
    assert RewardModel.from_base(tmp_path, choice=choice).head_note == "the checkpoint's: LABEL_1 - LABEL_0 at '\\n'"


def test_the_steps_of_qwens_process_reward_model_are_read(tmp_path: Path) -> None:
    language_model = save(AutoModelForCausalLM, "qwen2", tmp_path)
    torch.manual_seed(3)
    head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    held = {f"score.{name}": tensor.detach() for name, tensor in head.state_dict().items()}
    change_tensors(tmp_path, lambda tensors: tensors.update(held))
    change_config(tmp_path, architectures=["Qwen2ForProcessRewardModel"])
    with pytest.raises(UnusableBase, match="--step-scores last"):
        RewardModel.from_base(tmp_path)
    model = RewardModel.from_base(tmp_path, heads=1, choice=chosen(step_scores="last", step_token="<end>"))
    assert not model.skips_padding
    with torch.no_grad():
        steps = head(last_states(language_model))
    check_everywhere(model, steps[:, 1] - steps[:, 0], tmp_path)


@pytest.mark.parametrize(("flag", "number"), [("\\n", None), ("<end>", END), (str(END), END)])
def test_an_answer_ends_with_the_step_token_alone(flag: str, number: int | None, tmp_path: Path) -> None:
    save(AutoModelForTokenClassification, "llama", tmp_path / "base", labels=2)
    flags = ["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store")]
    assert export_cli.main([*flags, "--step-scores", "last", "--step-token", flag]) == 0
    manifest = ModelStore(tmp_path / "store").manifest("reward", 1)
    (suffix,) = manifest.text_format["response"]["suffix"]
    assert number is None or suffix == number
    settings = {"base": str(tmp_path / "base"), "step_scores": "last", "step_token": flag}
    started = start_from(ModelStore(tmp_path / "none"), None, RewardHyperparameters.model_validate(settings), 0)
    assert started.encoder.format.to_json() == manifest.text_format


@pytest.mark.parametrize(
    ("kind", "flags", "line"),
    [
        ("llama", [], r"score\.weight scores every token: --step-scores last --step-token TOKEN"),
        ("llama", ["--step-scores", "last"], "needs --step-token"),
        ("llama", ["--step-scores", "last", "--step-token", "two words"], "is 9 tokens"),
        ("llama", ["--step-scores", "mean"], "--step-scores mean needs --step-token"),
        (
            "llama",
            ["--step-scores", "mean", "--step-token", "a", "--label-weights", "LABEL_0=1"],
            "combines the probabilities of one of two labels",
        ),
        ("bert", LAST, r"token classifier on an encoder, whose classifier\.weight scores every token"),
    ],
)
def test_what_cannot_be_read_is_refused(
    kind: str, flags: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(AutoModelForTokenClassification, kind, tmp_path / "base", labels=2)
    assert export_cli.main(["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store"), *flags]) == 1
    said = capsys.readouterr().err
    assert line.replace("\\", "") in said
    assert ModelStore(tmp_path / "store").versions("reward") == []


def test_steps_of_another_kind_of_classifier_are_refused(tmp_path: Path) -> None:
    save(AutoModelForSequenceClassification, "llama", tmp_path, labels=1)
    with pytest.raises(UnusableBase, match="--step-scores is for token classifiers, and this is LlamaForSequence"):
        RewardModel.from_base(tmp_path, choice=chosen(step_scores="last", step_token="a"))


CHAT = (
    "{% for m in messages %}{{ '[CLS]' + m.role + ':' + m.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS]assistant:' }}{% endif %}"
)
QUESTION = "Two and\n\ntwo?"  # a separator of the prompt's own is no end of a step
ANSWERS = ["One and one.\n\nSo two.\n\n\n\nFour.", "[SEP] four\n\nno", "Four."]
STEPS = [["One and one.", "So two.", "Four."], ["[SEP] four", "no"], ["Four."]]


def token_scores(classifier: Any, ids: list[int], step: int) -> torch.Tensor:
    """The class's scores at each step token: the probability of label 1, or the logit of a single label."""
    with torch.no_grad():
        logits = classifier(input_ids=torch.tensor([ids])).logits[0]
    at = logits[torch.tensor(ids) == step].double()
    return at.softmax(-1)[:, 1] if at.shape[1] == 2 else at[:, 0]


def put(ids: list[int], old: list[int], new: list[int]) -> list[int]:
    places = [i for i in range(len(ids)) if ids[i : i + len(old)] == old]
    for place in reversed(places):
        ids[place : place + len(old)] = new
    return ids


def combine(rule: str, each: torch.Tensor) -> float:
    return float({"mean": each.mean(), "min": each.min(), "product": each.prod()}[rule])


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("rule", ["mean", "min", "product"])
def test_the_graph_combines_the_steps_as_the_class_scores_them(rule: str, labels: int, tmp_path: Path) -> None:
    base = tmp_path / "base"
    classifier = save(AutoModelForTokenClassification, "llama", base, labels=labels)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(base)
    flags = ["--base", str(base), "--store", str(tmp_path / "store"), "--heads", "2"]
    assert export_cli.main([*flags, "--step-scores", rule, "--step-token", "[SEP]"]) == 0
    store = ModelStore(tmp_path / "store")
    manifest = store.manifest("reward", 1)
    assert manifest.text_format["steps"] == {"token": SEP, "separator": "\n\n", "is_marked": True}
    assert f"the {rule} of the steps" in manifest.notes["heads"]

    directory = store.fetch("reward", 1)
    backend = Tokenizer.from_file(str(directory / TOKENIZER))
    encoder = Encoder(backend, read_text_format(manifest.text_format), manifest.max_length)
    (rows,) = encoder.groups([([Turn("user", QUESTION)], ANSWERS)])
    assert isinstance(rows, list)
    expected = []

    def ids_of(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    for row, steps in zip(rows, STEPS, strict=True):
        # The class's tokenizer would read the name of the token in a text as the token, so its text is put in later.
        content = "".join(f"{step.replace('[SEP]', '§')}[SEP]" for step in steps)
        said = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": content}]
        theirs = list(tokenizer.apply_chat_template(said, tokenize=True, return_dict=False))
        theirs = put(theirs[: len(theirs) - theirs[::-1].index(SEP)], ids_of("§"), ids_of("[") + ids_of("SEP]"))
        assert [SEP if i < 0 else i for i in row.ids] == theirs
        expected.append(combine(rule, token_scores(classifier, theirs, SEP)))
    session = ort.InferenceSession(directory / MODEL)
    length = 200
    for inputs in (decoder_rows(rows, length, 0), tree_rows([rows], 400, 0)):
        found = session.run(None, inputs)[0]
        np.testing.assert_allclose(found, np.repeat(np.array(expected)[:, None], 2, axis=1), atol=1e-4)
    loaded = RewardModel.load(directory / TORCH)
    with torch.no_grad():
        again = [loaded(torch.tensor([row.ids]), torch.ones(1, len(row.ids), dtype=torch.long)) for row in rows]
    np.testing.assert_allclose(torch.cat(again)[:, 0].numpy(), expected, atol=1e-4)


def test_the_steps_of_an_answer_are_text_that_no_token_ends_if_the_token_is_text(tmp_path: Path) -> None:
    """TRL's way: each step is tokenized, and the token of the separator follows it."""
    classifier = save(AutoModelForTokenClassification, "llama", tmp_path, labels=2)
    choice = chosen(step_scores="min", step_token="\n", step_separator="\\n")
    model = RewardModel.from_base(tmp_path, heads=1, choice=choice)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text_format = with_step_end(tokenizer, reward_layout(tokenizer, model).text_format, choice)
    encoder = Encoder(tokenizer.backend_tokenizer, text_format, 200)
    row = encoder.pair([Turn("user", "a\nb")], "one\ntwo")
    newline = tokenizer.encode("\n", add_special_tokens=False)[0]
    assert [i for i in row.ids if i < 0] == [-1 - newline] * 2
    ids = [i if i >= 0 else -1 - i for i in row.ids]
    assert tokenizer.decode(ids).endswith("one\ntwo\n")
    with torch.no_grad():
        each = classifier(input_ids=torch.tensor([ids])).logits[0].softmax(-1)[:, 1]
        found = model(torch.tensor([row.ids]), torch.ones(1, len(ids), dtype=torch.long))
    marked = torch.tensor(row.ids) < 0
    assert float(found) == pytest.approx(float(each[marked].min()), abs=1e-5)


def test_a_text_token_in_a_rendered_template_is_refused(tmp_path: Path) -> None:
    tokenizer = tool_base("qwen").hugging_face()
    layout = decoder_layout(tokenizer, "read")
    with pytest.raises(UnusableBase, match="needs a step token that is a token of its own"):
        with_step_end(tokenizer, layout.text_format, chosen(step_scores="mean", step_token="a"))
    found = with_step_end(tokenizer, layout.text_format, chosen(step_scores="last", step_token="<|endoftext|>"))
    encoder = Encoder(tokenizer.backend_tokenizer, found, 400)
    step = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    row = encoder.pair([Turn("user", "a <|endoftext|>")], "b <|endo\n\ntext|> c\n\nd")
    assert row.ids.count(step) == 3
    assert row.ids[-1] == step
