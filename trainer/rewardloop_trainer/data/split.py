"""The split of signals into training, a judge's training and held out: by the question that they are about.

A prompt has two keys: the user's first turn, which is the root of its conversation, and the user's last turn. The
system turn is in neither, because it may hold a date or a user's name. Case, white space, Unicode form and the
punctuation at the ends of a text do not count.

`side_of` depends on one key alone and needs no memory. `data.pools.sides` adds what needs one: near-duplicates, and
questions that come up in several conversations.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rewardloop.formats.messages import TOOLS, Turn
from rewardloop_trainer.data.preferences import Prompt

Side: TypeAlias = Literal["train", "judge", "heldout"]


@dataclass(frozen=True, slots=True)
class QuestionKeys:
    """The normalised texts by which a prompt is split; ``last`` equals ``root`` if the user spoke once."""

    root: str
    last: str


def keys_of(prompt: Prompt) -> QuestionKeys:
    """Return the keys of a prompt. A prompt without a turn of the user has all of its text as its key."""
    said = [turn.content for turn in prompt if turn.role == "user"]
    if not said:
        whole = normalised("\n".join(turn.content for turn in prompt))
        return QuestionKeys(whole, whole)
    root = normalised(said[0])
    return QuestionKeys(root, root if len(said) == 1 else normalised(said[-1]))


def prompt_key(prompt: Prompt) -> bytes:
    """Identify prompts that ask the same: a hash of their normalised turns.

    How the JSON of tools is spelled, and in which order their keys stand, makes no difference.
    """
    parts = (f"{turn.role}\x1f{normalised(_spelled(turn))}" for turn in prompt)
    return hashlib.sha256("\x1e".join(parts).encode()).digest()


def side_of(key: str, *, heldout_share: float = 0.1, judge_share: float = 0.0, salt: str = "") -> Side:
    """Return the side of a key. The same arguments give the same side on every machine.

    A share that grows moves keys from training to that side and none back to training, as long as the other share
    stays.

    Args:
        key: A normalised text, such as `QuestionKeys.root`.
        heldout_share: Share of keys that are held out, from 0 to 1.
        judge_share: Share of keys that only an independent judge is trained on, from 0 to 1 - ``heldout_share``.
        salt: Another salt gives an independent split of the same keys.
    """
    digest = hashlib.sha256(f"{salt}user\x1f{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < heldout_share:
        return "heldout"
    return "judge" if position >= 1 - judge_share else "train"


def normalised(text: str) -> str:
    """Return the text without what does not make it another question: case, white space, Unicode form, punctuation at
    its ends. A text of punctuation alone keeps it."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    start, end = 0, len(folded)
    while start < end and _is_edge(folded[start]):
        start += 1
    while end > start and _is_edge(folded[end - 1]):
        end -= 1
    return folded[start:end] or folded


def _spelled(turn: Turn) -> str:
    return json.dumps(json.loads(turn.content), sort_keys=True) if turn.role == TOOLS else turn.content


def _is_edge(character: str) -> bool:
    """Whether a character at the end of a text is white space, punctuation or a control character."""
    return character.isspace() or unicodedata.category(character)[0] in "PC"
