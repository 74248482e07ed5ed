"""Decides whether a demo has shown that both models learned."""

from __future__ import annotations

import math

from rewardloop_demo.record import DemoRecord


def not_shown(demo: DemoRecord) -> list[str]:
    """Return a sentence for each thing that a demo has to show and this one did not.

    One new version of each model is enough: a gate is right to refuse those after it that are not shown to be better.
    """
    last = demo.rounds[-1]
    wins = [r for r in demo.rounds if r.policy_swaps and not math.isnan(r.win_rate)]
    found = []
    swaps = {"reward": last.reward_swaps, "policy": last.policy_swaps}
    found += [f"no new {model} version was swapped in" for model, count in swaps.items() if not count]
    found += [
        f"reward version {each.reward_version} is worse than the one before it, by more than noise"
        for each in demo.rounds
        if each.reward_change_high < 0
    ]
    if not last.reward_accuracy > demo.starter_accuracy:
        found.append("the last reward model is no better than the starter")
    if last.policy_swaps and (not wins or wins[-1].win_low <= 0.5):
        found.append("the last policy is not shown to be better than the starter")
    return found
