"""What a policy's answers look like: how long, how varied, how often empty, cut off, repeated or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from rewardloop_trainer.assessment.measures import mean_of, share_of
from rewardloop_trainer.assessment.refusals import is_refusal
from rewardloop_trainer.clusters import ClusteredMean
from rewardloop_trainer.evaluation.collapse import distinct_2, repeated_4
from rewardloop_trainer.evaluation.policy_gate import Answered

_Figure: TypeAlias = Callable[[Sequence[Answered]], float]


def text_figures(groups: Sequence[Sequence[Answered]]) -> dict[str, ClusteredMean]:
    """Return the figures of a policy's answers, with their errors over prompts.

    Args:
        groups: The answers to each prompt, at least one each.
    """
    sizes: dict[str, _Figure] = {
        "tokens": lambda group: _mean([answer.tokens for answer in group]),
        "characters": lambda group: _mean([len(answer.text) for answer in group]),
    }
    shares: dict[str, _Figure] = {
        "empty": lambda group: _mean([answer.is_empty for answer in group]),
        "cut off": lambda group: _mean([answer.is_truncated for answer in group]),
        "refused": lambda group: _mean([is_refusal(answer.text) for answer in group]),
        "repeated phrases": lambda group: repeated_4([answer.text for answer in group]),
        "distinct word pairs": lambda group: distinct_2([answer.text for answer in group]),
    }
    places = np.arange(len(groups))
    return {
        **{name: mean_of(np.array([of(group) for group in groups]), places) for name, of in sizes.items()},
        **{name: share_of(np.array([of(group) for group in groups]), places) for name, of in shares.items()},
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
