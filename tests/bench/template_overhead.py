"""What rendering a chat template costs a request of four turns, the response among them,, beside the layout by affixes.

    python tests/bench/template_overhead.py

CPU time of `Encoder.groups`, least of 20 rounds in turns, so that the figures hold on a busy machine.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.chat_bases import CHAT_KINDS, chat_base

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.template_layout import TemplateFormat
from rewardloop.formats.text import Encoder, Turn

ROUNDS, REQUESTS = 20, 50
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "model", "and", "hello", "world", "how", "are", "you")


def request(number: int) -> tuple[tuple[Turn, ...], list[str]]:
    """Return a prompt of three turns of 30 words, and a response of as many."""
    chance = random.Random(number)
    texts = [" ".join(chance.choices(WORDS, k=30)) for _ in range(4)]
    roles = ("user", "assistant", "user")
    return tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False)), [texts[3]]


def seconds(encoder: Encoder) -> float:
    """Return the CPU seconds of one request."""
    started = time.process_time()
    for number in range(REQUESTS):
        encoder.groups([request(number)])
    return (time.process_time() - started) / REQUESTS


def main() -> None:
    """Print microseconds of each kind of base, by affixes and by its template."""
    print(f"{'base':<14} {'affixes':>8} {'template':>9} {'more':>6}   (us of CPU a request)")
    for kind in CHAT_KINDS:
        base = chat_base(kind)
        ours = base.hugging_face()
        eos = ours.convert_tokens_to_ids(base.eos)
        affixes = Encoder(ours.backend_tokenizer, TextFormat.for_decoder(ours.backend_tokenizer, eos_id=eos), 4096)
        fresh = base.hugging_face()
        template = TemplateFormat(base.template, dict(fresh.special_tokens_map), eos, (eos,))
        encoders = (affixes, Encoder(fresh.backend_tokenizer, template, 4096))
        least = [float("inf")] * 2
        for _ in range(ROUNDS):
            for i, encoder in enumerate(encoders):
                least[i] = min(least[i], seconds(encoder))
        plain, rendered = (1e6 * each for each in least)
        print(f"{kind:<14} {plain:>8.0f} {rendered:>9.0f} {rendered - plain:>6.0f}")


if __name__ == "__main__":
    main()
