"""A policy answers as `generate` of transformers does with the checkpoint's generation config, or export refuses it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.tiny_policies import FAMILIES, save_tiny_policy, tiny_policy, tiny_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Turn
from rewardloop.v1 import common_pb2, policy_pb2
from rewardloop_policy.policy_model import PolicyModel, load_policy_model
from rewardloop_policy.worker import read_settings
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.calls.errors import InvalidRequest, NotLoadable
from rewardloop_server.calls.estimate import DEFAULT_NEW_TOKENS
from rewardloop_server.calls.validate import Limits
from rewardloop_trainer.commands import export
from rewardloop_trainer.policy.start import start_from_base

CPU = torch.device("cpu")
NEW_TOKENS = 16
TEXTS = (
    "Hi",
    "How are you?",
    "a",
    "Tell me about the sea.",
    "12 + 30 =",
    "Why is the sky blue at noon?",
    "no",
    "Ünder",
)
EVERY_RULE = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[40], [50, 60]],
    "suppress_tokens": [70, 71],
    "begin_suppress_tokens": [1, 80],
    "min_new_tokens": 5,
    "eos_token_id": [1, *range(100, 140)],
}


def run_export(base: Path, store: Path, *flags: str) -> int:
    return export.main(["--base", str(base), "--store", str(store), "--model", "policy", *flags])


def exported(base: Path, store: Path) -> PolicyModel:
    assert run_export(base, store) == 0
    models = ModelStore(store)
    version = models.versions("policy")[-1]
    return load_policy_model(models.manifest("policy", version), models.fetch("policy", version), device=CPU)


def greedy(policy: PolicyModel, texts: tuple[str, ...]) -> list[str]:
    settings = SampleRequest((), temperature=0.0, max_new_tokens=NEW_TOKENS)
    requests = [policy.request((Turn("user", text),), settings) for text in texts]
    return [group[0].text for group in policy.answer(requests)]


def generated(base: Path) -> list[str]:
    """The answers of transformers, one by one."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    answers = []
    for text in TEXTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS)[0, ids.shape[1] :]
        named = model.generation_config.eos_token_id
        ends = named if isinstance(named, list) else [named]
        answers.append(tokenizer.decode(out[:-1] if int(out[-1]) in ends else out, skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "rwkv"])
def test_batched_answers_equal_those_of_generate(family: str, tmp_path: Path) -> None:
    base = save_tiny_policy(tmp_path / "base", family)
    policy = exported(base, tmp_path / "store")
    expected = generated(base)
    assert len(set(expected)) > 2
    assert greedy(policy, TEXTS) == expected
    assert [answer for text in TEXTS for answer in greedy(policy, (text,))] == expected


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_answers_follow_the_generation_config(family: str, tmp_path: Path) -> None:
    base = save_tiny_policy(tmp_path / "base", family, generation=EVERY_RULE)
    policy = exported(base, tmp_path / "store")
    expected = generated(base)
    assert greedy(policy, TEXTS) == expected
    assert [answer for text in TEXTS for answer in greedy(policy, (text,))] == expected
    assert expected != generated(save_tiny_policy(tmp_path / "plain", family))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_beams", 4),
        ("penalty_alpha", 0.6),
        ("prompt_lookup_num_tokens", 3),
        ("forced_eos_token_id", 1),
        ("stop_strings", ["\n"]),
        ("guidance_scale", 1.5),
    ],
)
def test_an_unsupported_way_of_generating_is_refused_by_name(
    field: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_tiny_policy(tmp_path / "base", generation={field: value})
    assert run_export(base, tmp_path / "store") == 1
    assert f"{field}={value!r}" in capsys.readouterr().err.splitlines()[-1]
    assert ModelStore(tmp_path / "store").versions("policy") == []


def test_sampling_settings_without_do_sample_are_no_reason_to_refuse(tmp_path: Path) -> None:
    base = save_tiny_policy(tmp_path / "base", generation={"temperature": 0.9, "top_p": 0.6, "do_sample": False})
    assert greedy(exported(base, tmp_path / "store"), TEXTS) == generated(base)


def _rwkv(directory: Path) -> None:
    save_tiny_policy(directory, "rwkv")


def _not_numbers(directory: Path) -> None:
    save_tiny_policy(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.get_output_embeddings().weight.data.fill_(float("nan"))
    model.save_pretrained(directory)


def _without_a_head(directory: Path) -> None:
    save_tiny_policy(directory)
    AutoModel.from_pretrained(directory).save_pretrained(directory)


def _config(**fields: object) -> Any:
    def change(directory: Path) -> None:
        save_tiny_policy(directory)
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def _prompt_tuning(directory: Path) -> None:
    save_tiny_policy(directory / "whole")
    model = AutoModelForCausalLM.from_pretrained(directory / "whole")
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(directory)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_rwkv, "cannot serve this rwkv model"),
        (_not_numbers, "not numbers"),
        (_without_a_head, "lm_head.weight"),
        (_config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised (gptq)"),
        (_config(pad_token_id=264), "beyond the 264 rows"),
        (_config(model_type="nothing"), "nothing"),
        (_prompt_tuning, "do not merge"),
    ],
)
def test_what_the_worker_could_not_serve_is_refused_at_export(
    damage: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(tmp_path / "base")
    assert run_export(tmp_path / "base", tmp_path / "store") == 1
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert ModelStore(tmp_path / "store").versions("policy") == []


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_adapters_are_merged(has_tokenizer: bool, tmp_path: Path) -> None:
    whole = save_tiny_policy(tmp_path / "whole")
    adapted: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(whole), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    )
    torch.manual_seed(3)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(tmp_path / "adapters")
    if has_tokenizer:
        tiny_tokenizer().save_pretrained(tmp_path / "adapters")
    policy = exported(tmp_path / "adapters", tmp_path / "store")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    tiny_tokenizer().save_pretrained(tmp_path / "merged")
    expected = generated(tmp_path / "merged")
    assert expected != generated(whole)
    assert greedy(policy, TEXTS) == expected
    assert start_from_base(str(tmp_path / "adapters"), 0).load().config.model_type == "llama"


def test_longrope_is_bounded_by_the_original_context(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [9.0] * 4, "rope_theta": 1e4}
    base = save_tiny_policy(tmp_path / "base", "phi3", rope_parameters=rope, original_max_position_embeddings=64)
    policy = exported(base, tmp_path / "store")
    assert policy.manifest.max_length == 64
    assert greedy(policy, TEXTS) == generated(base)


def test_a_window_does_not_bound_a_policy(tmp_path: Path) -> None:
    base = save_tiny_policy(tmp_path / "base", "mistral")
    assert exported(base, tmp_path / "store").manifest.max_length == 160


def test_files_have_the_modes_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert run_export(save_tiny_policy(tmp_path / "base"), tmp_path / "store") == 0
    finally:
        os.umask(before)
    version = Path(ModelStore(tmp_path / "store").path("policy", 1))
    assert {path.stat().st_mode & 0o777 for path in version.iterdir()} == {0o644}
    assert version.stat().st_mode & 0o777 == 0o755


def test_answers_may_be_as_long_as_the_context_holds(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    manifest = publish_policy(store, small_llama(), byte_encoder(128))
    policy = load_policy_model(manifest, store.fetch("policy", 1), device=CPU)
    short, long = (Turn("user", "a"),), (Turn("user", "a" * 100),)
    prompt = len(policy.request(short, SampleRequest(())).prompt)
    assert policy.longest_answer(short, wanted=20) == 20
    assert policy.longest_answer(short, wanted=4096) == 128 - prompt
    assert policy.longest_answer(long, wanted=4096) == 64
    most = SampleRequest((), max_new_tokens=128 - prompt)
    assert len(policy.request(short, most).prompt) == prompt
    with pytest.raises(InvalidRequest):
        policy.request(short, SampleRequest((), max_new_tokens=128))


def test_without_a_bound_requests_that_name_no_number_get_the_default_one() -> None:
    def new_tokens(asked: int, bound: int) -> int:
        request = policy_pb2.GenerateRequest(prompt=common_pb2.Prompt(text="Hi"), max_new_tokens=asked)
        return read_settings(request, Limits(), bound).max_new_tokens

    assert (new_tokens(0, 0), new_tokens(5000, 0)) == (DEFAULT_NEW_TOKENS, 5000)
    assert (new_tokens(0, 200), new_tokens(150, 200)) == (200, 150)
    with pytest.raises(InvalidRequest):
        new_tokens(201, 200)


def test_a_published_version_that_generates_in_an_unsupported_way_is_refused_by_the_worker(tmp_path: Path) -> None:
    model = tiny_policy("llama")
    model.generation_config.num_beams = 2
    store = ModelStore(tmp_path)
    manifest: Manifest = publish_policy(store, model, byte_encoder(128))
    with pytest.raises(NotLoadable, match="num_beams=2"):
        load_policy_model(manifest, store.fetch("policy", 1), device=CPU)
