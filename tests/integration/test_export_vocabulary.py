"""A tokenizer with more tokens than the embedding has rows is refused before anything is published."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.reward_bases import byte_tokenizer, config, save_base
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.data.base_text import UnusableBase, check_vocabulary
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import start_from


def add_tokens(directory: Path, *tokens: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(directory)


@pytest.mark.parametrize("model", ["reward", "policy"])
def test_tokens_beyond_the_embedding_are_named_and_nothing_is_published(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base("llama", tmp_path / "base")
    AutoModelForCausalLM.from_config(config("llama")).save_pretrained(base)
    add_tokens(base, "<|first|>", "<|second|>")
    flags = ["--base", str(base), "--store", str(tmp_path / "store"), "--model", model]
    assert export_cli.main(flags) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("rewardloop export: "))
    assert "260 rows" in line
    assert "2 of its 262 tokens" in line
    assert "'<|first|>' (260)" in line
    assert "resize_token_embeddings" in line
    assert ModelStore(tmp_path / "store").versions(model) == []


def test_the_trainer_refuses_such_a_base_too(tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    add_tokens(base, "<|first|>")
    settings = RewardHyperparameters.model_validate({"base": str(base)})
    with pytest.raises(UnusableBase, match="resize_token_embeddings"):
        start_from(ModelStore(tmp_path / "store"), None, settings, 0)


def test_an_embedding_may_have_rows_that_no_token_uses() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), pad_token="[PAD]", eos_token="<end>")
    check_vocabulary(tokenizer, 260)
    check_vocabulary(tokenizer, 320)
    with pytest.raises(UnusableBase, match="1 of its 260 tokens"):
        check_vocabulary(tokenizer, 259)
