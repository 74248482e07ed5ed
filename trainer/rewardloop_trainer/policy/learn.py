"""Trains a policy by the algorithm that its settings name, in the daemon's rounds and in `policy-train` alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import structlog

from rewardloop.formats.text import Encoder
from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, Record, pairs_of, thumbs_of
from rewardloop_trainer.learning.run_control import NothingToLearnFrom as NothingToLearnFrom
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.policy.dpo_train import DpoProgress, train_policy
from rewardloop_trainer.policy.kto_train import KtoProgress, train_kto
from rewardloop_trainer.policy.online.algorithms import task_of
from rewardloop_trainer.policy.online.train import Score, train_online
from rewardloop_trainer.policy.settings import PolicySettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Examples:
    """Everything that any algorithm learns from: each one takes the field that it needs.

    ``prompts`` are distinct.
    """

    prompts: Sequence[Prompt]
    pairs: Sequence[Pair]
    thumbs: Sequence[Labelled]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Self:
        prompts = tuple(dict.fromkeys(record.prompt for record in records))
        return cls(prompts, pairs_of(records), thumbs_of(records))


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run leaves.

    Attributes:
        policy: The trained policy.
        figures: The run's figures, by name.
    """

    policy: Any
    figures: Mapping[str, float]


PolicyControl: TypeAlias = RunControl[StepDone, Trained]


def learn_policy(
    model: Any,
    encoder: Encoder,
    train: Examples,
    heldout: Examples,
    settings: PolicySettings,
    score: Score,
    control: PolicyControl,
) -> None:
    """Train ``model`` in place by ``settings.algorithm``, then call ``control.save``.

    A run that was stopped or killed goes on from its checkpoint when it is called again with the same arguments.

    Args:
        model: A Hugging Face causal LM in float32. Its weights at the time of the call are the reference.
        encoder: The model's tokenizer, text format and maximum length.
        train: The examples to learn from.
        heldout: Examples that are measured after the last step, by DPO and KTO alone.
        settings: The algorithm and its settings; ``settings.seed`` is the seed of the run.
        score: Scores sampled answers, for the online algorithms alone.
        checkpoint_dir: Where checkpoints are kept while the run lasts.
        control: The checkpoint directory and the callbacks.

    Raises:
        NothingToLearnFrom: If ``train`` has nothing for the algorithm.
        TrainingStopped: If ``control.should_stop`` returned True.
        ArithmeticError: If gradients or probabilities are not usable numbers.
    """
    match settings.algorithm:
        case "dpo":
            _learn_from_pairs(model, encoder, train.pairs, heldout.pairs, settings, control)
        case "kto":
            _learn_from_thumbs(model, encoder, train.thumbs, heldout.thumbs, settings, control)
        case online:
            _learn_from_answers(model, encoder, train, online, settings, score, control)


def _learn_from_pairs(
    model: Any,
    encoder: Encoder,
    train: Sequence[Pair],
    heldout: Sequence[Pair],
    settings: PolicySettings,
    control: PolicyControl,
) -> None:
    if not train:
        raise NothingToLearnFrom("dpo learns from pairs of different texts, and there is none to train on")
    train_policy(
        model,
        encoder,
        train,
        heldout,
        settings.dpo,
        RunControl(
            control.checkpoint_dir,
            lambda progress: control.on_step(_step_done(progress, progress.figures.shown())),
            control.should_stop,
            lambda outcome: control.save(Trained(model, outcome.figures)),
        ),
    )


def _learn_from_thumbs(
    model: Any,
    encoder: Encoder,
    train: Sequence[Labelled],
    heldout: Sequence[Labelled],
    settings: PolicySettings,
    control: PolicyControl,
) -> None:
    if not train:
        raise NothingToLearnFrom(
            "kto learns from thumbs and from ratings off the middle of their scale, and there is none to train on"
        )
    train_kto(
        model,
        encoder,
        train,
        heldout,
        settings.kto,
        RunControl(
            control.checkpoint_dir,
            lambda progress: control.on_step(_step_done(progress, progress.figures.named())),
            control.should_stop,
            lambda outcome: control.save(Trained(model, outcome.figures)),
        ),
        seed=settings.seed,
    )


def _learn_from_answers(
    model: Any,
    encoder: Encoder,
    train: Examples,
    algorithm: OnlineAlgorithm,
    settings: PolicySettings,
    score: Score,
    control: PolicyControl,
) -> None:
    task = task_of(algorithm, settings, encoder, train.prompts, train.pairs, settings.seed)
    if not task.prompts:
        raise NothingToLearnFrom("no prompt to train on leaves room for an answer")
    if left_out := len(train.prompts) - len(task.prompts):
        log.warning("prompts that leave no room for an answer are left out", prompts=left_out)
    train_online(
        model,
        encoder,
        task,
        score,
        RunControl(
            control.checkpoint_dir,
            control.on_step,
            control.should_stop,
            lambda policy: control.save(Trained(policy, {"train_prompts": float(len(task.prompts))})),
        ),
        seed=settings.seed,
    )


def _step_done(progress: DpoProgress | KtoProgress, figures: Mapping[str, float]) -> StepDone:
    figures = {**figures, "grad_norm": progress.gradient_norm}
    return StepDone(progress.step, progress.steps, figures, seconds=progress.seconds)
