"""Conversations as token sequences, of which a model learns the assistant's turns; a row may hold several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewardloop.formats.text import Encoder, RefusedConversation, Turn
from rewardloop_trainer.data.computing.autocast import computing_types
from rewardloop_trainer.data.computing.logprobs import logprobs_at
from rewardloop_trainer.data.preferences import Prompt


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation that ends with the assistant's turn. Its assistant turns from ``first_learned`` on are learned."""

    turns: tuple[Turn, ...]
    first_learned: int

    @classmethod
    def answered(cls, prompt: Prompt, response: str) -> Dialogue:
        """A dialogue of which only the response is learned, not what the assistant said before."""
        return cls((*prompt, Turn("assistant", response)), len(prompt))


@dataclass(frozen=True, slots=True)
class Example:
    """A token sequence, and the spans of it that are learned, each from its start (at least 1) to before its end."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """Number of tokens that are learned."""
        return sum(end - start for start, end in self.spans)


def encode_dialogues(encoder: Encoder, dialogues: Sequence[Dialogue]) -> tuple[list[Example], int]:
    """Encode dialogues.

    Learned turns are one example if the layout writes an earlier response as it writes the one that is asked for. A
    learned turn that it writes otherwise is an example of its own, written as the response that is asked for.

    Returns:
        The examples in the order of the dialogues, and how many were dropped because they are longer than the encoder's
        maximum, or because the text format has no form for their dialogue.
    """
    learned = [
        (number, i)
        for number, dialogue in enumerate(dialogues)
        for i in range(dialogue.first_learned, len(dialogue.turns))
        if dialogue.turns[i].role == "assistant"
    ]
    groups = encoder.completions([(dialogues[d].turns[:i], [dialogues[d].turns[i].content]) for d, i in learned])
    by_dialogue: dict[int, list[Example]] = {}
    dropped = 0
    for (number, _), group in zip(learned, groups, strict=True):
        if isinstance(group, RefusedConversation):
            dropped += 1
            continue
        (row,) = group
        ids = (*row.prompt, *row.response)
        by_dialogue.setdefault(number, []).append(Example(ids, ((len(row.prompt), len(ids)),)))
    found: list[Example] = []
    for examples in by_dialogue.values():
        for example in _joined(examples):
            if len(example.ids) <= encoder.max_length and example.spans[0][0] > 0:
                found.append(example)
            else:
                dropped += 1
    return found, dropped


def _joined(examples: Sequence[Example]) -> list[Example]:
    """Join each example with the next one that starts with its ids; ``examples`` are those of one dialogue's turns."""
    joined: list[Example] = []
    for example in reversed(examples):
        later = joined[-1] if joined else None
        if later is not None and later.ids[: len(example.ids)] == example.ids:
            joined[-1] = Example(later.ids, (*example.spans, *later.spans))
        else:
            joined.append(example)
    return joined[::-1]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack sequences into rows of at most ``capacity`` tokens; a longer sequence is a row of its own.

    The method is first-fit decreasing, which needs at most about 11/9 of the fewest rows (Johnson 1973).

    Returns:
        The indices of each row's sequences.
    """
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
    """-log p of every learned token given the tokens before it in its example.

    Examples of one row do not see each other: the attention mask is block-diagonal, and the positions of each example
    start at 0. Rows are padded at the end.

    Args:
        model: A Hugging Face causal LM that honours mask and positions; see `keeps_apart`.
        rows: The examples of each row.
        pad_id: Token id of padding.

    Returns:
        (learned tokens,), in nats, row by row.
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
    # Without packing no mask is needed: padding is at the end, where a causal model does not look.
    layout = _apart(part, positions, model) if any(len(row) > 1 for row in rows) else {}
    device = model.device
    found, _ = logprobs_at(model, ids.to(device), is_learned.to(device), layout=layout)
    return -found


def _apart(part: Tensor, positions: Tensor, model: Any) -> dict[str, Tensor]:
    same = part.unsqueeze(2) == part.unsqueeze(1)
    is_seen = same & torch.ones_like(same[0]).tril()
    # Additive, because every attention implementation takes that. Some would add a bool mask as 0 and 1.
    mask = torch.zeros(is_seen.shape, dtype=model.dtype).masked_fill(~is_seen, torch.finfo(model.dtype).min)
    return {"attention_mask": mask.unsqueeze(1).to(model.device), "position_ids": positions.to(model.device)}


@torch.no_grad()
def keeps_apart(model: Any, examples: Sequence[Example], pad_id: int) -> bool:
    """Whether the model gives packed examples the losses that they have alone.

    A model with a state beside attention, or with an attention window of its own, may not.
    """
    tried = examples[:3]
    if len(tried) < 2:
        return True
    alone = torch.cat([token_losses(model, [[example]], pad_id) for example in tried])
    packed = token_losses(model, [tried], pad_id)
    spacing = max(torch.finfo(dtype).eps for dtype in computing_types(model) if dtype.is_floating_point)
    return bool((alone - packed).abs().max() <= spacing**0.5)
