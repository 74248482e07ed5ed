"""The check that a policy keeps to the floors of the mixture that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from rewardloop_trainer.assessment.checks import MOST_CASES, Check, too_few
from rewardloop_trainer.clusters import clustered_mean
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.prompt_text import conversation_text
from rewardloop_trainer.policy.check_settings import PolicyChecks
from rewardloop_trainer.policy.rewards import FlooredPart
from rewardloop_trainer.reports.parts import Measured, Sample, Side

# Gives the parts of the mixture that have floors, with their values of the responses to each prompt.
ReadParts: TypeAlias = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Sequence[FlooredPart]]


class NoFloor(ValueError):
    """Raised if the check is asked for, and what the policy is trained on has no floor."""


def check_floors(
    prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], read: ReadParts, settings: PolicyChecks
) -> list[Check]:
    """Check each part that has a floor: the mean of its values must be shown to be above the floor less the margin.

    A mean at the margin below the floor passes with a probability of at most ``settings.alpha``. Empty answers have no
    value and are left out.

    Args:
        prompts: Held-out prompts.
        texts: The candidate's answers to each.
        read: Gives the values.
        settings: The margin (``floor``), ``alpha``, and the least number of prompts.

    Raises:
        NoFloor: If no part has a floor.
        RewardloopError: If the server gives no values.
    """
    parts = read(prompts, texts)
    if not parts:
        raise NoFloor("checks.floor: reward_model is no mixture of which a part has a floor")
    return [_check(part, prompts, texts, settings) for part in parts]


def _check(
    part: FlooredPart, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], settings: PolicyChecks
) -> Check:
    assert settings.floor is not None
    rows = [(i, j, v) for i, group in enumerate(part.values) for j, v in enumerate(group) if v is not None]
    places = np.array([i for i, _, _ in rows], dtype=np.int64)
    if (asked := len(np.unique(places))) < settings.least:
        return too_few("floor", part.name, asked, settings.least)
    above = np.array([value - part.floor for _, _, value in rows], dtype=np.float64)
    mean = clustered_mean(above, np.ones(len(above)), places)
    lower = mean.lower(settings.alpha)
    text = f"mean value {mean.mean:+.3f} from its floor of {part.floor:g}, by its interval perhaps {lower:+.3f}"
    passed = lower > -settings.floor or (mean.mean >= 0 and mean.error == 0)
    if not passed:
        text += f": not above {-settings.floor:+.3f}"
    worst = [rows[k] for k in np.argsort(above)[:MOST_CASES] if above[k] < 0]
    cases = tuple(
        Sample(conversation_text(prompts[i]), [Side("answer", texts[i][j])], {part.name: value}, [])
        for i, j, value in worst
    )
    found = Measured(mean.mean, mean.lower(0.025), mean.upper(0.025))
    return Check("floor", part.name, passed, text, found, lower + settings.floor, cases)
