"""Conversations with two answers each, as words of which every family's tokenizer makes several tokens."""

from __future__ import annotations

import random

from rewardloop.formats.text import Turn

_WORDS = (
    *("why", "is", "the", "sky", "blue", "hello", "world", "refund", "please"),
    *("because", "light", "jumps", "over", "an", "answer", "fine", "ok", "würde"),
)

Dialogue = tuple[tuple[Turn, ...], tuple[str, str]]


def dialogues(count: int, *, turns: int = 3, seed: int = 0) -> list[Dialogue]:
    """Return ``count`` conversations of one user's turn to ``turns`` turns, each with two answers."""
    chance = random.Random(seed)

    def text() -> str:
        return " ".join(chance.choice(_WORDS) for _ in range(chance.randint(4, 18)))

    found: list[Dialogue] = []
    for _ in range(count):
        length = chance.randrange(1, turns + 1, 2)
        conversation = tuple(Turn("user" if i % 2 == 0 else "assistant", text()) for i in range(length))
        found.append((conversation, (text(), text())))
    return found
