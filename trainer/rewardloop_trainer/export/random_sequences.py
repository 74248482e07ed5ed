"""Draws sequences of random tokens, on which graphs are compared."""

from __future__ import annotations

import random

from rewardloop.formats.text import Encoded, Encoder

MOST_TOKENS = 512
_STEPS = 0.1  # share of the tokens at which a step ends


def random_sequences(
    encoder: Encoder, vocabulary: int, count: int, seed: int = 0, longest: int = MOST_TOKENS
) -> list[Encoded]:
    """Return sequences of random tokens, on which parity is tried without texts.

    They have 2 tokens to the maximum length (at most ``longest``). Each prompt has two responses. Of a model that reads
    steps, some tokens of a response are marked as the end of a step.
    """
    chance = random.Random(seed)
    longest = min(encoder.max_length, longest)

    def draw(length: int) -> list[int]:
        ids = [chance.randrange(vocabulary) for _ in range(length)]
        return [i if i != encoder.format.pad else (i + 1) % vocabulary for i in ids]

    marks = encoder.format.steps is not None and encoder.format.steps.is_marked
    found: list[Encoded] = []
    while len(found) < count:
        prompt = draw(chance.randint(1, longest - 1))
        for _ in range(min(2, count - len(found))):
            response = draw(chance.randint(1, longest - len(prompt)))
            if marks:
                response = [-1 - i if chance.random() < _STEPS else i for i in response]
            types = [0] * len(prompt) + [1] * len(response) if encoder.format.segment_ids else None
            found.append(Encoded(prompt + response, types, False, len(response), len(prompt)))
    return found
