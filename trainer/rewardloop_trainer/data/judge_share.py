"""The prompts that teach the judge of policies and nothing else, so that who trained a policy does not judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from rewardloop_trainer.data.preferences import Prompt, Record, prompt_key


def teaches_judge(prompt: Prompt, share: float) -> bool:
    """Say whether a training prompt is the judge's.

    It depends on the prompt alone, as the split does, and is independent of it: the judge's prompts are ``share`` of
    the training prompts, whatever share is held out.

    Args:
        prompt: The turns of the prompt.
        share: The share of training prompts that are the judge's, from 0 to 1.
    """
    digest = hashlib.sha256(b"judge\x1e" + prompt_key(prompt)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def of_judge(records: Iterable[Record], share: float) -> tuple[Record, ...]:
    """Return the records of training prompts that teach the judge."""
    return tuple(record for record in records if teaches_judge(record.prompt, share))


def of_others(records: Iterable[Record], share: float) -> tuple[Record, ...]:
    """Return the records of training prompts that reward models and policies learn from."""
    return tuple(record for record in records if not teaches_judge(record.prompt, share))
