"""The watch against reward hacking on one run: every few steps the policy is a candidate for the best one so far."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from gold_world import World, answers_of, asked

from rewardloop_trainer.evaluation.hacking_watch import Point, alarm
from rewardloop_trainer.evaluation.policy_gate import share_won

_EVERY_STEPS = 2
_ASKED = 400


class Watched:
    """Each candidate's answers against the live ones, by the proxy and by users' choices, which are noisy as all are.
    As after a gate, a candidate is live from then on when the users prefer it.

    ``alarm_step``: of the first alarm, 0 while there is none; nothing is halted, so that gold shows what would follow.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._questions: Sequence[str] = world.heldout[:_ASKED]
        self._live = self._scored(world.rivals[:_ASKED])
        self.points: list[Point] = []
        self.alarm_step = 0
        self.reason = ""

    def look(self, policy: Any, step: int) -> None:
        if step % _EVERY_STEPS:
            return
        number = step // _EVERY_STEPS
        said = answers_of(policy, self._world.starter.encoder, self._questions, seed=5_000 + number)
        candidate = self._scored([rollout.text for (rollout,) in said])
        texts, rivals = [text for text, _ in candidate], [text for text, _ in self._live]
        gaps = np.array([new - old for (_, new), (_, old) in zip(candidate, self._live, strict=True)])
        by_score = (1 + np.sign(gaps)) / 2
        rng = random.Random(f"watch/{self._world.judge.seed}/{number}")
        by_users = np.array(self._world.judge.verdicts(self._questions, texts, rivals, rng))
        score_lower, win_rate_upper = share_won(by_score).lower(0.025), share_won(by_users).upper(0.025)
        score = statistics.mean(value for _, value in candidate)
        self.points.append(Point(number, "judge", score, score_lower, float(by_users.mean()), win_rate_upper))
        if not self.alarm_step and (reason := alarm(self.points)) is not None:
            self.alarm_step, self.reason = step, reason
        if by_users.mean() > 0.5:
            self._live = candidate

    def _scored(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Empty answers, which have no score, have the worst."""
        scored = self._world.proxy.score([asked(q) for q in self._questions], [[text] for text in texts])
        return [(text, -3.0 if reward is None else reward.score) for text, (reward,) in zip(texts, scored, strict=True)]
