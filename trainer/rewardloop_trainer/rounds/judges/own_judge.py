"""Trains the judge of policies on the prompts that are its alone, and keeps it in the work directory.

It starts where the reward model's line started, with new heads and another seed. It is trained again when the signals
have grown by a quarter, so that a long life costs few trainings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import torch

from rewardloop.formats.store import ModelStore, StoreError
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.data.preferences import Record, weighing
from rewardloop_trainer.evaluation.policy_judge import NoJudge, PolicyJudge
from rewardloop_trainer.learning.write_whole import write_whole
from rewardloop_trainer.reward.average import train_averaged
from rewardloop_trainer.reward.lora import with_lora
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.start import NothingToStartFrom, NothingToTrain, RewardStart, start_from
from rewardloop_trainer.rounds.line import first_of_line
from rewardloop_trainer.rounds.trainer_state import RoundState
from rewardloop_trainer.settings import TrainSettings

log = structlog.get_logger()

_GROWTH = 1.25
# The judge's seeds are none of the reward model's, which are multiples of a million and three plus small numbers.
_SEED = 777_767_777
_OTHER_WAY = "--policy.gate.judge names another judge"


def own_judge(
    settings: TrainSettings,
    store: ModelStore,
    reward_version: str | None,
    now: RoundState,
    records: Callable[[], Sequence[Record]],
    should_stop: Callable[[], bool],
) -> PolicyJudge:
    """Return the judge, trained if there is none yet or if it has seen too few of the signals.

    Args:
        settings: The trainer's settings; the judge is trained as the reward model is.
        store: The model store.
        reward_version: The live reward version, whose line's start is the judge's start.
        now: The round that needs the judge.
        records: Returns the records of the judge's own prompts.
        should_stop: Asked before each step.

    Raises:
        NoJudge: If there is nothing to start from, or too few signals.
        TrainingStopped: If ``should_stop`` returned true.
    """
    try:
        start = _start(settings, store, reward_version)
    except (StoreError, NothingToStartFrom, NothingToTrain, UnusableBase) as error:
        raise NoJudge(f"no judge: {error}; {_OTHER_WAY}") from error
    kept = settings.work_dir / "judge" / "kept"
    about = {"start": start.base if start.directory is None else str(start.directory), "share": settings.judge_share}
    if (kept / "about.json").exists():
        before = json.loads((kept / "about.json").read_text())
        is_same = all(before[name] == value for name, value in about.items())
        if is_same and before["signals"] <= now.signals < _GROWTH * before["signals"]:
            return PolicyJudge(RewardModel.load(kept / "model"), start.encoder)
    learned = weighing(records())
    least = settings.reward.gate_prompts
    if len(learned) < least:
        raise NoJudge(
            f"no judge: it needs {least - len(learned)} more signals of its own (have {len(learned)}); {_OTHER_WAY}"
        )
    log.info("training the judge of policies", signals=len(learned))
    _train(settings, start, learned, should_stop)

    def write(directory: Path) -> None:
        start.model.save(directory / "model")
        (directory / "about.json").write_text(json.dumps({**about, "signals": now.signals, "learned": len(learned)}))

    write_whole(kept, write)
    return PolicyJudge(start.model.eval(), start.encoder)


def _start(settings: TrainSettings, store: ModelStore, version: str | None) -> RewardStart:
    """Return the start of the reward model's line: its first version if no signals taught it, else that one's base."""
    if version is None:
        return start_from(store, None, settings.reward, _SEED)
    first = first_of_line(store, "reward", version)
    if first.data is not None:
        return start_from(store, None, settings.reward.model_copy(update={"base": first.base}), _SEED)
    start = start_from(store, first.version, settings.reward, _SEED)
    start.model.merge_lora()
    heads = start.model.heads
    with torch.no_grad():
        drawn = torch.randn(heads.weight.shape, generator=torch.Generator().manual_seed(_SEED))
        heads.weight.copy_(drawn / math.sqrt(heads.in_features + 1))
        heads.bias.zero_()
        start.model.threshold.zero_()
    return start


def _train(
    settings: TrainSettings, start: RewardStart, learned: Sequence[Record], should_stop: Callable[[], bool]
) -> None:
    training = settings.reward.model_copy(update={"seed": _SEED + settings.seed})
    if training.method == "lora":
        with_lora(start.model, training.lora)
    checkpoints = settings.work_dir / "judge" / "checkpoints"
    # Without held-out records no weights are chosen by them: the judge's agreement with people is measured on those.
    train_averaged(start.model, start.encoder, learned, (), training, checkpoints, should_stop=should_stop)
    start.model.merge_lora()
