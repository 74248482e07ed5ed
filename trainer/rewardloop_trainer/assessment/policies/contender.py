"""A policy that answers prompts: loaded here, or known by its answers in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewardloop.formats.text import Encoder
from rewardloop_data.rows import RowError, kind_of, text_of, turns_of
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.assessment.policies.head_to_head import Answers
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.evaluation.policy_gate import Answered
from rewardloop_trainer.policy.rollouts import Rollout, Sampling, fitting_prompts, roll_out


class MissingAnswers(ValueError):
    """Raised if a file of answers cannot be used, or has none to a prompt. The message names file and row."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy with its weights.

    Attributes:
        name: Such as "policy 4".
        model: A causal LM in evaluation mode.
        encoder: Its tokenizer and text layout.
        sampling: How it answers.
        on_batch: Called before each batch of work; it may raise to stop.
    """

    name: str
    model: Any = field(repr=False)
    encoder: Encoder = field(repr=False)
    sampling: Sampling
    on_batch: Callable[[], None] = field(default=lambda: None, repr=False)

    def roll_out(self, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """Answer prompts that leave room for an answer."""
        return roll_out(self.model, self.encoder, prompts, self.sampling, on_batch=self.on_batch)

    def answer(self, prompts: Sequence[Prompt]) -> Answers:
        """Answer prompts that leave room for an answer; lengths are in tokens."""
        said = self.roll_out(prompts)
        texts = [[rollout.text for rollout in group] for group in said]
        return Answers(self.name, texts, [[rollout.sequence.tokens for rollout in group] for group in said])

    def respond(self, prompts: Sequence[Prompt]) -> list[list[str]]:
        """Answer any prompts. One that leaves no room for an answer gets an empty one."""
        fitting = {prompt_key(prompt) for prompt in self._fitting(prompts)}
        places = [i for i, prompt in enumerate(prompts) if prompt_key(prompt) in fitting]
        answered: list[list[str]] = [[""] for _ in prompts]
        for i, group in zip(places, self.roll_out([prompts[i] for i in places]), strict=True):
            answered[i] = [rollout.text for rollout in group]
        return answered

    def _fitting(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return fitting_prompts(self.encoder, prompts, self.sampling.max_new_tokens)


@dataclass(frozen=True, slots=True)
class AnswersInFile:
    """Answers that a policy gave elsewhere, by prompt.

    Attributes:
        name: The file.
        prompts: The prompts that it answers, in the file's order.
        texts: Its answers to each, by `prompt_key`.
    """

    name: str
    prompts: tuple[Prompt, ...]
    texts: dict[bytes, tuple[str, ...]] = field(repr=False)

    def answer(self, prompts: Sequence[Prompt]) -> Answers:
        """Return the answers to these prompts; lengths are in characters. Raises `MissingAnswers`."""
        found: list[tuple[str, ...]] = []
        for prompt in prompts:
            if prompt_key(prompt) not in self.texts:
                raise MissingAnswers(f"{self.name}: has no answer to {prompt[-1].content[:60]!r}")
            found.append(self.texts[prompt_key(prompt)])
        return Answers(self.name, found, [[len(text) for text in group] for group in found])


def read_answers(path: Path) -> AnswersInFile:
    """Read rows ``{prompt, response}``, ``{prompt, responses}`` or AlpacaEval's ``{instruction, output}``.

    Several rows of one prompt are several answers to it.

    Raises:
        MissingAnswers: If a row has another form, or there is none.
        UnreadableFile: If the file cannot be read.
    """
    prompts: dict[bytes, Prompt] = {}
    texts: dict[bytes, tuple[str, ...]] = {}
    for line in SourceFile.of(path).lines():
        try:
            row = line.value()
            if not isinstance(row, dict):
                raise RowError(f"is {kind_of(row)}, not an object")
            asked = "prompt" if "prompt" in row else "instruction"
            prompt = turns_of(asked, row.get(asked), row.get("tools"))
            listed = row.get("responses")
            if isinstance(listed, list) and listed:
                said = [text_of(f"responses[{i}]", text) for i, text in enumerate(listed)]
            else:
                said = [text_of("response", row.get("response", row.get("output")))]
        except RowError as error:
            raise MissingAnswers(f"{path}:{line.number}: {error}") from error
        key = prompt_key(prompt)
        prompts.setdefault(key, prompt)
        texts[key] = (*texts.get(key, ()), *said)
    if not prompts:
        raise MissingAnswers(f"{path}: has no row")
    return AnswersInFile(path.name, tuple(prompts.values()), texts)


def answered(rollouts: Sequence[Sequence[Rollout]]) -> list[list[Answered]]:
    """Return rollouts as the answers that text figures are taken of."""
    return [
        [Answered(each.text, each.sequence.tokens, each.finish == "length", None) for each in group]
        for group in rollouts
    ]


def answered_texts(said: Answers) -> list[list[Answered]]:
    """Return answers of a file in the same way. Whether they were cut off is not known."""
    return [
        [Answered(text, length, False, None) for text, length in zip(texts, lengths, strict=True)]
        for texts, lengths in zip(said.texts, said.lengths, strict=True)
    ]
