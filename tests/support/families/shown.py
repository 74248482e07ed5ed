"""Exports a family's base, serves it, and compares what comes out with transformers.

Nothing of the product's own text layouts or masks is used for what is expected: ids come from `apply_chat_template`, or
the tokenizer's encoding of pairs, and logits and texts from the family's own classes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Turn
from rewardloop_policy.policy_model import load_policy_model
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.calls.errors import InvalidRequest, NotLoadable
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_trainer.commands import export as export_cli
from support.families.build import has_classifier, save_policy, save_reward
from support.families.table import Family
from support.families.texts import Dialogue, dialogues

TOLERANCE = 1e-4
_NEW_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Shown:
    """What an export of one model of a family showed.

    Attributes:
        refusal: The line of an export that was refused; all else is then empty.
        failure: What a version that was exported failed with.
        ids_equal: How many of the sequences have exactly the ids that transformers gives them.
        sequences: How many there are.
        logits: Largest difference of a served logit from the class's own, on that class's own ids.
        same_order: Share of the pairs of answers that are ordered as by the class.
        alone: Largest difference of a logit between all sequences at once and each alone.
        same_texts: How many greedy texts are those of `generate`.
        texts: How many texts there are; 0 for a reward model.
        batched_texts: How many texts are the same together as alone.
    """

    refusal: str = ""
    failure: str = ""
    ids_equal: int = 0
    sequences: int = 0
    logits: float = 0.0
    same_order: float = 1.0
    alone: float = 0.0
    same_texts: int = 0
    texts: int = 0
    batched_texts: int = 0

    @property
    def is_right(self) -> bool:
        return (
            not (self.refusal or self.failure)
            and self.ids_equal == self.sequences
            and self.logits <= TOLERANCE
            and self.alone <= TOLERANCE
            and self.same_order == 1.0
            and self.same_texts == self.batched_texts == self.texts
        )


def show_reward(family: Family, work: Path, conversations: int = 20) -> Shown:
    """Export and serve the family's classifier, or its bare model with new heads, and score two answers each."""
    base = save_reward(family, work / "base")
    exported = export_version(base, work / "store", "reward", "--heads", "1")
    if isinstance(exported, str):
        return Shown(refusal=exported)
    manifest, directory = exported
    given = dialogues(conversations, turns=3 if family.decodes else 1)
    model = SessionPool(ModelStore(work / "store"), Device("cpu", 1, spin=False), ServerMetrics()).load(
        manifest, directory
    )
    rows = [row for group in model.encoder.groups(given) for row in group]
    together = model.run(rows)[0][:, 0]
    alone = np.array([model.run([row])[0][0, 0] for row in rows])
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [inputs for dialogue in given for inputs in _inputs(family, tokenizer, dialogue)]
    expected = _class_logits(family, base, directory, ids)
    unread = tokenizer.pad_token_id if family.decodes and has_classifier(family) else None
    equal = sum(_read(row.ids, unread) == _read(each["input_ids"], unread) for row, each in zip(rows, ids, strict=True))
    margins, expected_margins = np.diff(together.reshape(-1, 2)), np.diff(expected.reshape(-1, 2))
    return Shown(
        ids_equal=equal,
        sequences=len(rows),
        logits=float(np.abs(together - expected).max()),
        same_order=float((np.sign(margins) == np.sign(expected_margins)).mean()),
        alone=float(np.abs(together - alone).max()),
    )


def show_policy(family: Family, work: Path, prompts: int = 8) -> Shown:
    """Export the family's causal language model, and let the policy worker's model answer greedily."""
    base = save_policy(family, work / "base")
    exported = export_version(base, work / "store", "policy")
    if isinstance(exported, str):
        return Shown(refusal=exported)
    manifest, directory = exported
    settings = SampleRequest((), temperature=0.0, max_new_tokens=_NEW_TOKENS)
    conversations = [conversation for conversation, _ in dialogues(prompts)]
    try:
        policy = load_policy_model(manifest, directory, device=torch.device("cpu"))
        requests = [policy.request(conversation, settings)[0] for conversation in conversations]
        together = [answers[0].text for answers in policy.answer(requests)]
        alone = [policy.answer([request])[0][0].text for request in requests]
    except (NotLoadable, InvalidRequest, RuntimeError) as error:
        return Shown(failure=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    ids = [_prompt_ids(tokenizer, conversation) for conversation in conversations]
    expected = _generated(base, tokenizer, ids)
    return Shown(
        ids_equal=sum(list(request.prompt) == each for request, each in zip(requests, ids, strict=True)),
        sequences=len(ids),
        same_texts=sum(ours == theirs for ours, theirs in zip(together, expected, strict=True)),
        texts=len(ids),
        batched_texts=sum(a == b for a, b in zip(together, alone, strict=True)),
    )


def export_version(base: Path, store: Path, model: str, *flags: str) -> tuple[Manifest, Path] | str:
    """Run the command `rewardloop export`. Returns the version, or the line with which it was refused."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = export_cli.main(["--base", str(base), "--store", str(store), "--model", model, *flags])
    if status != 0:
        lines = [line for line in said.getvalue().splitlines() if line.startswith("rewardloop export: ")]
        return lines[-1].removeprefix("rewardloop export: ").replace(f"{base}: ", "")
    versions = ModelStore(store)
    return versions.manifest(model, 1), versions.fetch(model, 1)


def _inputs(family: Family, tokenizer: Any, dialogue: Dialogue) -> list[dict[str, list[int]]]:
    conversation, answers = dialogue
    if not family.decodes:
        return [dict(tokenizer(conversation[-1].content, answer)) for answer in answers]
    return [
        {"input_ids": _chat_ids(tokenizer, (*conversation, Turn("assistant", answer)), add_generation_prompt=False)}
        for answer in answers
    ]


def _prompt_ids(tokenizer: Any, conversation: Sequence[Turn]) -> list[int]:
    return _chat_ids(tokenizer, conversation, add_generation_prompt=True)


def _chat_ids(tokenizer: Any, turns: Sequence[Turn], *, add_generation_prompt: bool) -> list[int]:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids: list[int] = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=False
    )
    return ids


def _class_logits(family: Family, base: Path, version: Path, inputs: Sequence[dict[str, list[int]]]) -> Any:
    """Return the logit of each sequence alone, by the family's classifier, or by its bare model and the new head."""
    kind: Any = AutoModelForSequenceClassification if has_classifier(family) else AutoModel
    model = kind.from_pretrained(base).eval()
    found = []
    with torch.no_grad():
        for each in inputs:
            tensors = {name: torch.tensor([values]) for name, values in each.items()}
            output = model(**tensors)
            if has_classifier(family):
                found.append(float(output.logits))
                continue
            with safe_open(version / "torch" / "heads.safetensors", framework="pt") as file:
                weight, bias = file.get_tensor("heads.weight"), file.get_tensor("heads.bias")
            found.append(float(output.last_hidden_state[0, -1] @ weight[0] + bias[0]))
    return np.array(found)


def _generated(base: Path, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
    model: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    found = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=_NEW_TOKENS,
            eos_token_id=tokenizer.eos_token_id,
        )
        found.append(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))
    return found


def _read(ids: Sequence[int], unread: int | None) -> list[int]:
    """Return the ids without those at the end that the class does not read."""
    kept = list(ids)
    while kept and kept[-1] == unread:
        kept.pop()
    return kept
