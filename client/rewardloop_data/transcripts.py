"""Reads conversations that were rendered as one text: Anthropic's "Human:" and "Assistant:", and ChatML."""

from __future__ import annotations

import re
from itertools import pairwise

from rewardloop.formats.messages import Turn
from rewardloop_data.rows import RowError, Turns

_SPEAKERS = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
_ROLE_OF = {"Human": "user", "Assistant": "assistant"}
_CHATML = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)(?:<\|im_end\|>\n?|\Z)", re.DOTALL)


def speakers(field: str, text: str) -> Turns:
    """Return the turns of a text of "Human:" and "Assistant:" turns. An empty last one is left out. Raises RowError."""
    pieces = _SPEAKERS.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise RowError(f"{field}: does not begin with 'Human:'")
    turns = [Turn(_ROLE_OF[who], said.strip()) for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]
    return _checked(field, turns)


def chatml(field: str, text: str) -> Turns:
    """Return the turns of a ChatML text. An empty last turn is left out. Raises RowError."""
    if _CHATML.sub("", text).strip():
        raise RowError(f"{field}: holds text outside <|im_start|> and <|im_end|>")
    turns = [Turn(role, said.strip()) for role, said in _CHATML.findall(text)]
    return _checked(field, [turn for turn in turns if turn.role != "system" or turn.content])


def _checked(field: str, turns: list[Turn]) -> Turns:
    if turns and not turns[-1].content:
        turns = turns[:-1]
    if not turns:
        raise RowError(f"{field}: is empty")
    for before, turn in pairwise(turns):
        if turn.role in (before.role, "system"):
            raise RowError(f"{field}: has two {turn.role} turns after each other, or a system turn within")
    if any(not turn.content for turn in turns):
        raise RowError(f"{field}: has an empty turn")
    return tuple(turns)
