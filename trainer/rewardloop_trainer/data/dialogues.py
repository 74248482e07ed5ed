"""Conversations as token sequences of which a model learns the assistant's turns; several in one row, if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rewardloop.formats.text import Encoder, TextFormat, Turn
from rewardloop_trainer.data.preferences import Prompt


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation whose last turn is the assistant's. Its turns from ``first_learned`` on are learned."""

    turns: tuple[Turn, ...]
    first_learned: int

    @classmethod
    def answered(cls, prompt: Prompt, response: str) -> Dialogue:
        """The response alone is learned, whatever the assistant said before."""
        return cls((*prompt, Turn("assistant", response)), len(prompt))

    @property
    def opening(self) -> Prompt:
        """What was said before the assistant first spoke."""
        first = next(i for i, turn in enumerate(self.turns) if turn.role == "assistant")
        return self.turns[:first]


@dataclass(frozen=True, slots=True)
class Example:
    """``ids`` and the places in them that are learned: each span from its start (at least 1) to before its end."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """Tokens that are learned."""
        return sum(end - start for start, end in self.spans)


def encode_dialogues(encoder: Encoder, dialogues: Sequence[Dialogue]) -> tuple[list[Example], int]:
    """Examples in the dialogues' order, and how many were dropped for being longer than the encoder's maximum.

    All learned turns of a dialogue are one example where the layout writes a past answer as it writes the one that is
    asked for; else each is an example of its own, as it will be asked for.
    """
    texts = list(dict.fromkeys(turn.content for dialogue in dialogues for turn in dialogue.turns))
    encoded = encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = {text: tuple(e.ids) for text, e in zip(texts, encoded, strict=True)}
    is_one = _writes_past_as_asked(encoder.format)
    found: list[Example] = []
    dropped = 0
    for dialogue in dialogues:
        roles = [turn.role for turn in dialogue.turns]
        learned = [i for i in range(dialogue.first_learned, len(roles)) if roles[i] == "assistant"]
        for last, places in [(learned[-1], learned)] if is_one else [(i, [i]) for i in learned]:
            contents = [ids[turn.content] for turn in dialogue.turns[: last + 1]]
            example = _example(encoder.format, roles[: last + 1], contents, places)
            if len(example.ids) <= encoder.max_length and example.spans[0][0] > 0:
                found.append(example)
            else:
                dropped += 1
    return found, dropped


def _writes_past_as_asked(layout: TextFormat) -> bool:
    past, asked = layout.assistant, layout.response
    return past.prefix == asked.prefix and past.suffix[: len(asked.suffix)] == asked.suffix


def _example(
    layout: TextFormat, roles: Sequence[str], contents: Sequence[tuple[int, ...]], learned: Sequence[int]
) -> Example:
    affixes = {"system": layout.system, "user": layout.user, "assistant": layout.assistant}
    ids: list[int] = [] if roles[0] == "system" else list(layout.opening)
    spans = []
    for i, (role, content) in enumerate(zip(roles, contents, strict=True)):
        affix = layout.response if i == len(roles) - 1 else affixes[role]
        ids += affix.prefix
        if i in learned:
            spans.append((len(ids), len(ids) + len(content) + len(layout.response.suffix)))
        ids += content
        ids += affix.suffix
    return Example(tuple(ids), tuple(spans))


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices by row, so that no row is longer than ``capacity``: first-fit decreasing (Johnson 1973), which needs at
    most 11/9 of the fewest rows. What is longer goes alone."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((r for r, left in enumerate(room) if left >= lengths[index]), None)
        if place is None:
            rows.append([index])
            room.append(capacity - lengths[index])
        else:
            rows[place].append(index)
            room[place] -= lengths[index]
    return rows


def token_losses(model: Any, rows: Sequence[Sequence[Example]], pad_id: int) -> Tensor:
    """-log p of every learned token given what is before it in its example: (learned tokens,), in nats, row by row.

    Examples of one row do not see each other: the attention mask is block-diagonal, and each one's positions start at
    0. ``model``: a Hugging Face causal LM that honours both; see `keeps_apart`. Rows are padded at the end.
    """
    longest = max(sum(len(example.ids) for example in row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    part = torch.zeros(len(rows), longest, dtype=torch.long)  # 0: padding
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    is_learned = torch.zeros(len(rows), longest, dtype=torch.bool)
    for r, row in enumerate(rows):
        at = 0
        for number, example in enumerate(row, start=1):
            end = at + len(example.ids)
            ids[r, at:end] = torch.tensor(example.ids)
            part[r, at:end] = number
            positions[r, at:end] = torch.arange(end - at)
            for start, stop in example.spans:
                is_learned[r, at + start : at + stop] = True
            at = end
    # Without packing, causality alone keeps padding at the end out of sight.
    layout = _apart(part, positions, model) if any(len(row) > 1 for row in rows) else {}
    # The token at t is predicted at t - 1: nothing before the first learned token's place is looked at.
    first = int(is_learned.any(0).int().argmax()) - 1
    device = model.device
    output = model(input_ids=ids.to(device), use_cache=False, logits_to_keep=longest - first, **layout)
    learned = is_learned[:, first + 1 :].to(device)
    logits = output.logits[:, :-1][learned].float()
    return cross_entropy(logits, ids[:, first + 1 :].to(device)[learned], reduction="none")


def _apart(part: Tensor, positions: Tensor, model: Any) -> dict[str, Tensor]:
    same = part.unsqueeze(2) == part.unsqueeze(1)
    is_seen = same & torch.ones_like(same[0]).tril()
    # Additive, for every attention implementation takes that; a bool mask would be added as 0 and 1 by some.
    mask = torch.zeros(is_seen.shape, dtype=model.dtype).masked_fill(~is_seen, torch.finfo(model.dtype).min)
    return {"attention_mask": mask.unsqueeze(1).to(model.device), "position_ids": positions.to(model.device)}


@torch.no_grad()
def keeps_apart(model: Any, examples: Sequence[Example], pad_id: int) -> bool:
    """Whether the model gives packed examples the losses that they have alone: a model with a state beside attention,
    or with a window of its own, may not."""
    tried = examples[:3]
    if len(tried) < 2:
        return True
    alone = torch.cat([token_losses(model, [[example]], pad_id) for example in tried])
    packed = token_losses(model, [tried], pad_id)
    return bool((alone - packed).abs().max() <= torch.finfo(model.dtype).eps ** 0.5)
