"""Chooses among the fake's candidates by the server's rules, with a score function in place of the reward model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from rewardloop.v1 import common_pb2, policy_pb2

_DEFAULT_RANDOM_SHARE = 0.1


def choose(
    request: policy_pb2.GenerateRequest,
    generation: policy_pb2.Generation,
    score: Callable[[str], float],
    reward_version: common_pb2.ModelVersion,
) -> None:
    """Keep the chosen candidates in ``generation``. With a single score function every pair is equally informative."""
    for candidate in generation.candidates:
        candidate.score, candidate.uncertainty = score(candidate.text), 0.0
    sampled, shown = len(generation.candidates), max(1, request.candidates)
    selection = request.selection or policy_pb2.SELECTION_BEST
    share = request.random_share if request.HasField("random_share") else _DEFAULT_RANDOM_SHARE
    if selection == policy_pb2.SELECTION_BEST:
        places = sorted(range(sampled), key=lambda i: -generation.candidates[i].score)[:shown]
        share, probability, each = 0.0, 1.0, 1.0
    else:
        chance = random.Random(request.seed if request.HasField("seed") else None)
        places = sorted(chance.sample(range(sampled), shown))
        probability, each = 1 / math.comb(sampled, shown), shown / sampled
        share = 1.0 if selection == policy_pb2.SELECTION_UNIFORM else share
    kept = [generation.candidates[i] for i in places]
    del generation.candidates[:]
    generation.candidates.extend(kept)
    generation.show_probabilities.extend([each] * shown)
    generation.chosen.CopyFrom(
        policy_pb2.Chosen(
            selection=selection,
            sampled=sampled,
            random_share=share,
            is_random=selection == policy_pb2.SELECTION_UNIFORM,
            set_probability=probability,
            reward_version=reward_version,
            reward_model=request.reward_model,
        )
    )
