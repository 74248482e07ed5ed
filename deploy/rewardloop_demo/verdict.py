"""Decides whether a demo has shown that both models learned."""

from __future__ import annotations

import math

from rewardloop_demo.record import DemoRecord
from rewardloop_demo.settings import DemoSettings

# A gate that refuses a version which is not shown to be better is right, so few versions have to go live. A demo that
# is told to learn fewer need not show more.
_LEAST_SWAPS = 2


def not_shown(demo: DemoRecord, settings: DemoSettings) -> list[str]:
    """What the demo should have shown and did not, as sentences; empty if it has shown everything."""
    last = demo.rounds[-1]
    wins = [r for r in demo.rounds if r.policy_swaps and not math.isnan(r.win_rate)]
    found = []
    if last.reward_swaps < min(_LEAST_SWAPS, settings.reward_rounds):
        found.append(f"only {last.reward_swaps} reward versions were swapped in")
    if last.policy_swaps < min(_LEAST_SWAPS, settings.policy_rounds):
        found.append(f"only {last.policy_swaps} policy versions were swapped in")
    found += [
        f"reward version {each.reward_version} is worse than the one before it, by more than noise"
        for each in demo.rounds
        if each.reward_change_high < 0
    ]
    if not last.reward_accuracy > demo.starter_accuracy:
        found.append("the last reward model is no better than the starter")
    if not wins or wins[-1].win_low <= 0.5:
        found.append("the last policy is not shown to be better than the starter")
    return found
