"""The starter trains from nothing, in its own process, and leaves directories that the rest of the system can use."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.learning_runs import THREADS, learning_seed
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewardloop.formats.text import Turn
from rewardloop_local import corpus
from rewardloop_local.starter import encoder_of
from rewardloop_trainer.reward.model import RewardModel

pytestmark = pytest.mark.long


def _train(out: Path, seed: int) -> dict[str, float]:
    sizes = ["--facts", "320", "--styled", "320", "--pairs", "160"]
    command = [sys.executable, "-m", "rewardloop_local.starter", "--out", str(out), "--seed", str(seed), *sizes]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    # `rewardloop up` shows its last line to people.
    said = (done.stdout + done.stderr).splitlines()
    assert all(
        re.fullmatch(r"the (policy|reward model) [a-z ]+: [a-z]+ [0-9.]+( of \d+|, \d+ s)", line) for line in said
    )
    figures: dict[str, float] = json.loads((out / "figures.json").read_text())
    return figures


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("starter")
    return out, _train(out, learning_seed(3))


@pytest.mark.learning
def test_training_learns_the_language_of_the_corpus(starter: tuple[Path, dict[str, float]]) -> None:
    _, figures = starter
    assert figures["sft_loss"] < 5.0  # 7.3 is chance over 1,500 tokens


def test_the_policy_is_an_ordinary_directory_that_ends_its_answers(starter: tuple[Path, dict[str, float]]) -> None:
    directory = starter[0] / "policy-base"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        file.name for file in directory.iterdir()
    }
    assert len(tokenizer) <= 1_500
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert sum(p.numel() for p in model.parameters()) < 3_000_000


def test_the_chat_template_and_the_serving_layout_agree(starter: tuple[Path, dict[str, float]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(starter[0] / "policy-base")
    encoder = encoder_of(tokenizer)
    for conversation in (
        (Turn("user", "How much is the kettle?"),),
        (Turn("system", "Be brief."), Turn("user", "Hi!"), Turn("assistant", "Hello."), Turn("user", "How much?")),
    ):
        messages = [{"role": t.role, "content": t.content} for t in conversation]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert encoder.prompt_ids(conversation) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_answer_of_the_corpus_survives_the_tokenizer(starter: tuple[Path, dict[str, float]]) -> None:
    encoder = encoder_of(AutoTokenizer.from_pretrained(starter[0] / "policy-base"))
    for _, completion in corpus.sft_examples(300, 9):
        row = encoder.completion((Turn("user", "Hi!"),), completion)
        assert encoder.decode(row.response) == completion
        assert len(row.response) <= 96


def test_the_reward_base_starts_every_head_of_a_reward_model_alike(starter: tuple[Path, dict[str, float]]) -> None:
    model = RewardModel.from_base(starter[0] / "reward-base", heads=3)
    assert model.is_decoder
    ids = torch.randint(6, 1_000, (2, 12))
    logits = model(ids, torch.ones_like(ids))
    assert logits.shape == (2, 3)
    assert torch.allclose(logits[:, 0], logits[:, 2])
    assert not torch.allclose(logits[0], logits[1])
