"""Models on this machine as judges and writers: a chat model's likelihoods and text, and a reward model's scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import head_bases
from support.tiny_policies import save_tiny_policy, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rewardloop.formats.text import Turn
from rewardloop_reward.unusable_base import UnusableBase
from rewardloop_trainer.commands.critique.command import main as critique
from rewardloop_trainer.commands.judge.command import main as judge
from rewardloop_trainer.judging.chat import Request
from rewardloop_trainer.judging.judge import Duel, JudgeRefused
from rewardloop_trainer.judging.local_chat import LocalChat, LocalChooser
from rewardloop_trainer.judging.open_judge import reward_judge_of_base

PROMPT = (Turn("system", "You compare."), Turn("user", "A or B?"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("writer"), max_position_embeddings=4096, initializer_range=0.1)


def test_likelihoods_are_those_of_transformers(base: Path) -> None:
    replies = ["VERDICT: A", "VERDICT: B", "VERDICT: TIE"]
    found = LocalChooser(str(base)).choose(PROMPT, replies)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), tiny_tokenizer()
    messages = [{"role": turn.role, "content": turn.content} for turn in PROMPT]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    expected = []
    for reply in replies:
        ids = [*asked, *tokenizer.encode(reply, add_special_tokens=False), tokenizer.eos_token_id]
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        expected.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(len(asked), len(ids))))
    assert found == pytest.approx(torch.softmax(torch.tensor(expected), 0).tolist(), abs=1e-5)


def test_a_reply_is_sampled_by_its_seed_and_a_long_conversation_refused(base: Path) -> None:
    chat = LocalChat(str(base), max_length=200)
    said = {seed: chat.complete(Request(PROMPT, 12, 1.0, seed)).text for seed in (0, 0, 1)}
    assert said[0] == chat.complete(Request(PROMPT, 12, 1.0, 0)).text
    assert said[0] != said[1]
    reply = chat.complete(Request(PROMPT, 5, 0.0))
    assert reply.reply_tokens <= 5
    assert reply.model == chat.name == base.name
    with pytest.raises(JudgeRefused, match="leaves no room"):
        chat.complete(Request((Turn("user", "x" * 300),), 12))


def test_a_local_model_judges_a_file(base: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "pairs.jsonl", tmp_path / "labels.jsonl"
    rows = [{"prompt": f"q{i}", "responses": [f"yes {i}", f"no {i}"]} for i in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--base", str(base), "--data", str(data), "--out", str(out), "--work-dir", str(tmp_path / "w"), "--once"]
    assert judge([*flags, "--metrics-port", "0", "--log-level", "warning", "--torch-threads", "1"]) == 0
    labels = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(labels) == 3
    assert all(0 < row["probability"] < 1 and row["model"] == base.name for row in labels)


def test_a_real_model_s_edits_are_what_it_wrote_and_every_round_is_counted(base: Path, tmp_path: Path) -> None:
    data, constitution = tmp_path / "prompts.jsonl", tmp_path / "c.toml"
    data.write_text('{"prompt": "How?", "completion": "So."}\n{"prompt": "What?", "completion": "That."}\n')
    principles = "".join(
        f'[[principles]]\nid = "{name}"\ncritique = "Be {name}."\nrevision = "Make it {name}."\n'
        for name in ("kind", "short")
    )
    constitution.write_text(f'name = "c"\nversion = "1"\n{principles}')
    flags = ["--base", str(base), "--prompts", str(data), "--constitution", str(constitution), "--max-tokens", "8"]
    flags += ["--out", str(tmp_path / "out"), "--work-dir", str(tmp_path / "w"), "--metrics-port", "0"]
    assert critique([*flags, "--no-prefers", "--log-level", "warning", "--torch-threads", "1"]) == 0
    counts = json.loads((tmp_path / "out/counts.json").read_text())
    steps = [json.loads(line) for line in (tmp_path / "out/steps.jsonl").read_text().splitlines()]
    assert {each["id"]: each["drawn"] for each in counts["principles"]} == {"kind": 2, "short": 2}
    for each in counts["principles"]:
        outcomes = [step["outcome"] for step in steps if step["principle"] == each["id"]]
        for name in ("changed", "unchanged", "unreadable"):
            assert outcomes.count(name) == each[name]
    edits = [json.loads(line) for line in (tmp_path / "out/edits.jsonl").read_text().splitlines()]
    assert len(edits) == counts["changed"]
    for edit in edits:
        rounds = [step for step in steps if step["prompt"] == edit["prompt"]]
        assert edit["rejected"] == rounds[0]["before"]
        assert edit["chosen"] == rounds[-1]["after"]
        assert edit["principles"] == [step["principle"] for step in rounds if step["outcome"] == "changed"]


def test_a_reward_model_judges_by_its_class_s_scores(tmp_path: Path) -> None:
    head_bases.save(AutoModelForSequenceClassification, "llama", tmp_path / "rm", labels=1)
    found = reward_judge_of_base(str(tmp_path / "rm"))
    assert found.name == "reward:rm"
    there, back = found.compare([Duel(PROMPT, "yes", "no"), Duel(PROMPT, "no", "yes")])
    assert there is not None
    assert back is not None
    assert there.probability == pytest.approx(1 - back.probability)
    assert {there.choice, back.choice} == {"first", "second"}


def test_a_base_without_a_trained_head_does_not_judge(base: Path) -> None:
    with pytest.raises(UnusableBase, match="no trained head"):
        reward_judge_of_base(str(base))
