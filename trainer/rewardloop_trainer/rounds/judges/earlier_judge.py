"""Loads a reward version before the live one, which may refuse a policy that the live one trained.

A version that taught the live policy is passed over. That policy was made to please it, errors and all, so that it
likes nearly every correction less.
"""

from __future__ import annotations

import structlog

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.formats.store import ModelStore, StoreError
from rewardloop_trainer.data.length_share import LengthShare
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.evaluation.policy_judge import PolicyJudge
from rewardloop_trainer.reward.start import NothingToTrain, start_from
from rewardloop_trainer.rounds.line import line_of
from rewardloop_trainer.settings import TrainSettings

log = structlog.get_logger()


# In a manifest's notes of a policy: the reward versions whose scores taught it, as "3" or "3, 4".
TAUGHT_BY = "taught_by"


def earlier_judge(settings: TrainSettings, store: ModelStore, live: str | None, policy: str) -> Scorer | None:
    """Return what scores by the newest ancestor of the reward version ``live`` that did not teach the live policy.

    Returns None if no version is live, it has no such ancestor, the ancestor is not in the store or cannot be loaded by
    torch, another model or a mixture trains policies, or the settings do not want it to judge.

    Args:
        settings: Of the trainer.
        store: The model store.
        live: The live reward version; None if there is none.
        policy: The live policy version.
    """
    if not settings.policy.gate.earlier_version or settings.policy.reward_model or live is None:
        return None
    try:
        teachers = store.manifest(POLICY, policy).notes.get(TAUGHT_BY, "").split(", ")
        _, *before = line_of(store, REWARD, live)
        chosen = next((each for each in before if each.version not in teachers), None)
        if chosen is None:
            return None
        share = LengthShare.of_calibration(chosen.calibration)
        # Weights are loaded and none is drawn, so that the seed has no effect.
        start = start_from(store, chosen.version, settings.reward, seed=0)
    except (StoreError, NothingToTrain) as error:
        log.warning("no reward version before the live one can judge", live=live, reason=str(error))
        return None
    return PolicyJudge(start.model, start.encoder, share).score
