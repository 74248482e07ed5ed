"""A base reads texts as its own tokenizer lays them out, or it is refused; scores are then those of its own class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.reward_bases import config
from support.tool_bases import TOOL_KINDS, tool_base
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoder, Turn
from rewardloop_local import corpus, starter
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.commands import policy_train as policy_train_cli
from rewardloop_trainer.commands import sft as sft_cli
from rewardloop_trainer.data.base_layout import decoder_layout
from rewardloop_trainer.data.base_text import load_tokenizer
from rewardloop_trainer.data.layout_check import Use, copy_of
from rewardloop_trainer.reward.base_layout import reward_layout
from rewardloop_trainer.reward.model import RewardModel

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMED = CHATML.replace("m['content']", "m['content'] | trim")
ENDS_WITH_EOS = CHATML.replace("<|im_end|>\n", "<|im_end|>")
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
SYSTEM_IN_USER = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + (system + '\n' if loop.last else '')"
    " + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ m['content'] + '</s>' }}{% endif %}"
    "{% endfor %}"
)


def save_tokenizer(
    directory: Path, template: str | None = None, *, eos: str = "<|im_end|>", pad: str = "<pad>", words: str = ""
) -> None:
    """Every byte is a token, and so is what is frequent in ``words``."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = 256 + len(SPECIAL) + (1 if words else 0)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([words] * 9 if words else [], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, pad_token=pad)
    fast.chat_template = template
    fast.save_pretrained(directory)


def save_pair_tokenizer(directory: Path, *, is_roberta: bool) -> None:
    """Lay pairs out as RoBERTa's tokenizer does, or as BERT's."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["<pad>", "<s>", "</s>"] if is_roberta else ["[PAD]", "[CLS]", "[SEP]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=259, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    pad, cls, sep = names
    between, second = (f"{sep} {sep}", 0) if is_roberta else (sep, 1)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {between} $B:{second} {sep}:{second}",
        special_tokens=[(cls, 1), (sep, 2)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        cls_token=cls,
        sep_token=sep,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(directory)


def save_model(auto: Any, kind: str, directory: Path, pad_id: int = 0) -> Any:
    chosen = config(kind)
    chosen.vocab_size, chosen.num_labels, chosen.pad_token_id = 262, 1, pad_id
    torch.manual_seed(0)
    model = auto.from_config(chosen).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return model


def export(directory: Path, *flags: str, model: str = "reward") -> int:
    store = str(directory.parent / "store")
    return export_cli.main(["--base", str(directory), "--store", store, "--model", model, *flags])


def note(directory: Path, version: int = 1, model: str = "reward") -> str:
    return ModelStore(directory.parent / "store").manifest(model, version).notes["layout"]


@pytest.mark.parametrize("model", ["reward", "policy"])
def test_a_plain_template_is_exact_and_the_manifest_says_so(model: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_model(AutoModelForCausalLM, "llama", base)
    save_tokenizer(base, CHATML)
    assert export(base, model=model) == 0
    assert note(base, model=model) == "exact, by affixes: 20 probes have the ids that the base's tokenizer gives them"


NEXT_IS_THE_SAME = "loop.nextitem is defined and loop.nextitem.role == message.role"
# Each writes something else than affixes for conversations of some kind.
BY_CONVERSATION = {
    "leaves out the assistant's first turn": "{% if not (loop.first and message.role == 'assistant') %}TURN{% endif %}",
    "merges turns of the user": f"{{% if {NEXT_IS_THE_SAME} %}}{{{{ message.content }}}}{{% else %}}TURN{{% endif %}}",
    "refuses a system turn at the end": (
        "{% if loop.last and message.role == 'system' %}{{ raise_exception('no user') }}{% endif %}TURN"
    ),
    "reads a switch in a text": "{% if '/quick' in message.content %}quick{% endif %}TURN",
    "reads the end of a text": "{% if message.content.endswith('/quick') %}quick{% endif %}TURN",
}


@pytest.mark.parametrize("use", ["read", "write"])
@pytest.mark.parametrize("name", BY_CONVERSATION)
def test_a_template_whose_turns_depend_on_the_conversation_is_rendered(name: str, use: Use, tmp_path: Path) -> None:
    turn = "{{ '<|im_start|>' + message.role + ':' + message.content + '<|im_end|>' }}"
    turns = "{%- for message in messages -%}" + BY_CONVERSATION[name].replace("TURN", turn) + "{%- endfor -%}"
    save_tokenizer(tmp_path, turns + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant:' }}{%- endif -%}")
    tokenizer = load_tokenizer(tmp_path)
    layout = decoder_layout(tokenizer, use)
    refuses_prompts = name == "refuses a system turn at the end" and use == "read"
    assert layout.note.startswith("exact, by affixes" if refuses_prompts else "exact, by its template")
    said = [Turn("assistant", "a"), Turn("user", "b"), Turn("user", "do it /quick")]
    messages = [{"role": turn.role, "content": turn.content} for turn in said]
    encoder = Encoder(copy_of(tokenizer), layout.text_format, 200)
    assert encoder.prompt_ids(said) == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("model", ["reward", "policy"])
@pytest.mark.parametrize("template", [TRIMMED, SYSTEM_IN_USER], ids=["trim", "system in the user's turn"])
def test_a_template_that_affixes_do_not_express_is_rendered(template: str, model: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_model(AutoModelForCausalLM, "llama", base)
    save_tokenizer(base, template)
    assert export(base, model=model) == 0
    assert note(base, model=model).startswith("exact, by its template: 20 probes")
    assert ModelStore(tmp_path / "store").manifest(model, 1).text_format["kind"] == "template"


@pytest.mark.parametrize("model", ["reward", "policy"])
def test_a_template_that_renders_at_random_is_refused_or_replaced_as_asked(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    save_model(AutoModelForCausalLM, "llama", base)
    save_tokenizer(base, CHATML.replace("'\n' + m", "strftime_now('%f') + '\n' + m"))
    assert export(base, model=model) == 1
    error = capsys.readouterr().err
    assert "probe 'single turn' differs at token" in error
    assert "--layout plain" in error
    assert ModelStore(tmp_path / "store").versions(model) == []

    assert export(base, "--layout", "plain", model=model) == 0
    assert note(base, model=model) == "plain, as asked"


def test_tokens_that_merge_over_a_border_are_those_of_the_rendered_text(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, CHATML, words="\n\n")
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer("a\n\nb")["input_ids"]) == 3
    model = save_model(AutoModelForSequenceClassification, "llama", tmp_path)
    assert model.config.vocab_size == len(tokenizer)
    layout = reward_layout(tokenizer, RewardModel.from_base(tmp_path))
    assert layout.note.startswith("exact, by its template: 20 probes")
    encoder = Encoder(tokenizer.backend_tokenizer, layout.text_format, 200)
    answered = [{"role": "user", "content": "\nWhy?"}, {"role": "assistant", "content": "\nSo."}]
    ids = encoder.pair((Turn("user", "\nWhy?"),), "\nSo.").ids
    assert ids == tokenizer.apply_chat_template(answered, return_dict=False)


def test_probes_that_the_template_itself_refuses_are_named(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_model(AutoModelForCausalLM, "llama", base)
    save_tokenizer(base, NO_SYSTEM)
    assert export(base) == 0
    assert note(base).startswith("exact, by its template: 16 probes")
    assert note(base).endswith("both refuse system, system and several turns, empty system, two system turns")
    save_tokenizer(base, "{{ raise_exception('none') }}")
    with pytest.raises(Exception, match="none"):
        load_tokenizer(base).apply_chat_template([{"role": "user", "content": "a"}])
    assert export(base) == 1


def test_a_policy_whose_template_ends_answers_with_another_token_stops_at_both(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, CHATML, eos="</s>")
    tokenizer = load_tokenizer(tmp_path)
    layout = decoder_layout(tokenizer, "write")
    assert layout.note.startswith("exact, by its template")
    end, eos = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "</s>"))
    assert layout.text_format.ends == (end, eos)
    encoder = Encoder(tokenizer.backend_tokenizer, layout.text_format, 200)
    assert encoder.completion((Turn("user", "a"),), "b").response[-1] == end


def test_the_starters_bases_pass(tmp_path: Path) -> None:
    texts = [text for example in corpus.sft_examples(100, 1) for text in example]
    tokenizer = starter.train_tokenizer(texts)
    policy = starter.new_policy(tokenizer)
    for name, model in (("policy", policy), ("reward", starter.new_reward_model(policy))):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        assert export(tmp_path / name, model=name) == 0
        assert note(tmp_path / name, model=name).startswith("exact, by affixes: 20 probes")
    assert ModelStore(tmp_path / "store").manifest("reward", 1).notes["heads"] == "the checkpoint's"


def test_a_decoder_without_a_template_is_compared_with_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_model(AutoModelForCausalLM, "llama", base)
    save_tokenizer(base)
    assert export(base) == 0
    assert note(base) == "plain: the base has no chat template"


@pytest.mark.parametrize("template", [CHATML, ENDS_WITH_EOS], ids=["newline last", "eos last"])
@pytest.mark.parametrize("pad", ["<pad>", "<|im_end|>"])
def test_scores_of_rendered_dialogues_are_those_of_the_class(template: str, pad: str, tmp_path: Path) -> None:
    """Also if padding is the token that ends an answer, which the class then does not read."""
    save_tokenizer(tmp_path, template, pad=pad)
    tokenizer = load_tokenizer(tmp_path)
    classifier = save_model(AutoModelForSequenceClassification, "llama", tmp_path, tokenizer.pad_token_id)
    model = RewardModel.from_base(tmp_path, heads=2)
    layout = reward_layout(tokenizer, model)
    assert layout.note.startswith("exact, by affixes: 20 probes")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    answers = ("Because.", "I do not know.\n", "ok")
    rendered = [
        tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], return_dict=False)
        for answer in answers
    ]
    encoder = Encoder(tokenizer.backend_tokenizer, layout.text_format, 200)
    turns = [Turn(m["role"], m["content"]) for m in messages]
    for answer, theirs in zip(answers, rendered, strict=True):
        ours = torch.tensor([encoder.pair(turns, answer).ids])
        with torch.no_grad():
            expected = classifier(input_ids=torch.tensor([theirs])).logits
            torch.testing.assert_close(model(ours, torch.ones_like(ours)), expected.expand(-1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_cross_encoder_reads_pairs_as_its_tokenizer_makes_them(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    classifier = save_model(AutoModelForSequenceClassification, kind, base)
    save_pair_tokenizer(base, is_roberta=kind == "roberta")
    tokenizer = load_tokenizer(base)
    pair = tokenizer("why is it blue", "light scatters", return_tensors="pt")
    assert pair["input_ids"].tolist()[0].count(2) == (3 if kind == "roberta" else 2)
    if kind == "roberta":
        del pair["token_type_ids"]
    with torch.no_grad():
        expected = classifier(**pair).logits
    assert export(base, "--heads", "2") == 0
    assert note(base).startswith("exact: 6 probes")

    manifest = ModelStore(tmp_path / "store").manifest("reward", 1)
    text_format = TextFormat.from_json(manifest.text_format)
    encoder = Encoder(tokenizer.backend_tokenizer, text_format, 200)
    ours = encoder.pair([Turn("user", "why is it blue")], "light scatters")
    assert ours.ids == pair["input_ids"].tolist()[0]
    model = RewardModel.from_base(base, heads=2)
    ids = torch.tensor([ours.ids])
    types = None if ours.token_type_ids is None else torch.tensor([ours.token_type_ids])
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids), types)
    torch.testing.assert_close(logits, expected.expand(-1, 2), atol=1e-5, rtol=0)


def test_a_cross_encoder_with_segments_is_refused_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    save_model(AutoModelForSequenceClassification, "bert", base)
    save_pair_tokenizer(base, is_roberta=False)
    assert export(base, "--no-segment-ids") == 1
    assert "the segment ids differ" in capsys.readouterr().err
    assert export(base, "--no-segment-ids", "--layout", "plain") == 0


TOOLS_SAID_FIRST = """\
{%- if tools %}{{ '<|im_start|>tools\\n' + tools | tojson + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
{%- if message.tool_calls %}{{ '\\n' + message.tool_calls | tojson }}{%- endif %}
{{- '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


@pytest.mark.parametrize("use", ["read", "write"])
def test_affixes_have_the_template_beside_them_if_it_reads_tools(use: Use, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, TOOLS_SAID_FIRST)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    layout = decoder_layout(tokenizer, use)
    assert layout.note == "exact, by affixes: 28 probes have the ids that the base's tokenizer gives them"
    assert isinstance(layout.text_format, TextFormat)
    assert layout.text_format.template is not None
    tokenizer.chat_template = TOOLS_SAID_FIRST.replace("message.tool_calls", "message.no_calls")
    left_out = ", and the template has no place for tool call, tool call with text, tool call without tools, "
    assert left_out in decoder_layout(tokenizer, use).note


@pytest.mark.parametrize("use", ["read", "write"])
@pytest.mark.parametrize("kind", TOOL_KINDS)
def test_tools_are_compared_where_the_template_has_them(kind: str, use: Use) -> None:
    layout = decoder_layout(tool_base(kind).hugging_face(), use)
    refused = {"llama": "two tool calls", "mistral": "developer, system later, two system turns, two tools, tool"}
    refused["mistral"] += ", assistant first, two user turns, system last"
    equal = {"llama": 27, "mistral": 20}.get(kind, 28)
    note = f"exact, by its template: {equal} probes have the ids that the base's tokenizer gives them"
    assert layout.note == note + (f", and both refuse {refused[kind]}" if kind in refused else "")


_AT_RANDOM = CHATML.replace("'\n' + m", "strftime_now('%f') + '\n' + m")


@pytest.fixture
def at_random(tmp_path: Path) -> Path:
    """A base whose template cannot be laid out exactly."""
    save_model(AutoModelForCausalLM, "llama", tmp_path / "base")
    save_tokenizer(tmp_path / "base", _AT_RANDOM)
    return tmp_path / "base"


def test_supervised_training_takes_the_plain_layout_and_an_export_of_it_has_the_same(
    at_random: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": "a"}) + "\n" for i in range(8)))
    flags = [
        "--base",
        str(at_random),
        "--data",
        str(rows),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--torch-threads",
        "1",
    ]
    assert sft_cli.main(flags) == 2
    assert "--layout plain" in capsys.readouterr().err
    assert sft_cli.main([*flags, "--layout", "plain"]) == 0
    assert AutoTokenizer.from_pretrained(out).chat_template is None
    assert export(out, model="policy") == 0
    assert note(out, model="policy") == "plain: the base has no chat template"


def test_a_policy_trained_with_the_plain_layout_says_so(
    at_random: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(8)))
    flags = ["--base", str(at_random), "--prompts", str(rows), "--out", str(tmp_path / "out")]
    flags += ["--algorithm", "dpo", "--epochs", "1", "--heldout-share", "0", "--torch-threads", "1"]
    assert policy_train_cli.main(flags) == 2
    assert "--layout plain" in capsys.readouterr().err
    assert policy_train_cli.main([*flags, "--layout", "plain"]) == 0
    assert json.loads((tmp_path / "out" / "policy" / "run.json").read_text())["layout"] == "plain, as asked"
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "policy").chat_template is None
