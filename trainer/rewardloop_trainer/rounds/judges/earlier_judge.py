"""Loads the reward version before the live one, which may refuse a policy that the live one trained."""

from __future__ import annotations

import structlog

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.store import ModelStore, StoreError
from rewardloop_trainer.data.length_share import LengthShare
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.evaluation.policy_judge import PolicyJudge
from rewardloop_trainer.reward.start import NothingToTrain, start_from
from rewardloop_trainer.settings import TrainSettings

log = structlog.get_logger()


def earlier_judge(settings: TrainSettings, store: ModelStore, live: str | None) -> Scorer | None:
    """Return what scores by the parent of the reward version ``live``.

    Returns None if no version is live, it has no parent, the parent is not in the store or cannot be loaded by torch,
    another model or a mixture trains policies, or the settings do not want it to judge.
    """
    if not settings.policy.gate.earlier_version or settings.policy.reward_model or live is None:
        return None
    try:
        before = store.manifest(REWARD, live).parent
        if before is None:
            return None
        share = LengthShare.of_calibration(store.manifest(REWARD, str(before)).calibration)
        # Weights are loaded and none is drawn, so that the seed has no effect.
        start = start_from(store, str(before), settings.reward, seed=0)
    except (StoreError, NothingToTrain) as error:
        log.warning("the reward version before the live one cannot judge", live=live, reason=str(error))
        return None
    return PolicyJudge(start.model, start.encoder, share).score
