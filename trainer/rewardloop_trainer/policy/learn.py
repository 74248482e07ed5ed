"""Trains a policy by the algorithm that its settings name, in the daemon's rounds and in `policy-train` alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import structlog

from rewardloop.formats.text import Encoder
from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, Record, pairs_of, thumbs_of
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.policy.dpo_train import DpoProgress, train_policy
from rewardloop_trainer.policy.kto_train import KtoProgress, train_kto
from rewardloop_trainer.policy.online.algorithms import task_of
from rewardloop_trainer.policy.online.collect import Score
from rewardloop_trainer.policy.online.open_sampler import open_sampler
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.settings import PolicySettings

log = structlog.get_logger()


class NothingToLearnFrom(ValueError):
    """Raised when the training examples hold nothing that the algorithm can use; the message says what it needs."""


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
    *,
    reference: Reference | None = None,
) -> None:
    """Train ``model`` in place by ``settings.algorithm``, then call ``control.save``.

    A run that was stopped or killed goes on from its checkpoint when it is called again with the same arguments.

    Args:
        model: A Hugging Face causal LM in float32.
        encoder: The model's tokenizer, text format and maximum length.
        train: The examples to learn from.
        heldout: Examples that are measured after the last step, by DPO and KTO alone.
        settings: The algorithm and its settings; ``settings.seed`` is the seed of the run.
        score: Scores sampled answers, for the online algorithms alone.
        control: The checkpoint directory and the callbacks.
        reference: The frozen policy that the learning one is held to; None: the model as it comes.

    Raises:
        NothingToLearnFrom: If ``train`` has nothing for the algorithm.
        TrainingStopped: If ``control.should_stop`` returned True.
        SamplerError: If the sampler gives no answers; as `SamplerAway` if it cannot be reached now.
        ArithmeticError: If gradients or probabilities are not usable numbers.
    """
    match settings.algorithm:
        case "dpo":
            _learn_from_pairs(model, encoder, train.pairs, heldout.pairs, settings, control, reference)
        case "kto":
            _learn_from_thumbs(model, encoder, train.thumbs, heldout.thumbs, settings, control, reference)
        case online:
            _learn_from_answers(model, encoder, train, online, settings, score, control, reference)


def _learn_from_pairs(
    model: Any,
    encoder: Encoder,
    train: Sequence[Pair],
    heldout: Sequence[Pair],
    settings: PolicySettings,
    control: PolicyControl,
    reference: Reference | None,
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
        reference=reference,
    )


def _learn_from_thumbs(
    model: Any,
    encoder: Encoder,
    train: Sequence[Labelled],
    heldout: Sequence[Labelled],
    settings: PolicySettings,
    control: PolicyControl,
    reference: Reference | None,
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
        reference=reference,
    )


def _learn_from_answers(
    model: Any,
    encoder: Encoder,
    train: Examples,
    algorithm: OnlineAlgorithm,
    settings: PolicySettings,
    score: Score,
    control: PolicyControl,
    reference: Reference | None,
) -> None:
    task = task_of(algorithm, settings, encoder, train.prompts, train.pairs, settings.seed)
    if not task.prompts:
        raise NothingToLearnFrom("no prompt to train on leaves room for an answer")
    if left_out := len(train.prompts) - len(task.prompts):
        log.warning("prompts that leave no room for an answer are left out", prompts=left_out)
    files = None if control.checkpoint_dir is None else control.checkpoint_dir.with_name("adapters")
    with open_sampler(settings.online, model, encoder, files) as sampler:
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
            sampler=sampler,
            reference=reference,
        )


def _step_done(progress: DpoProgress | KtoProgress, figures: Mapping[str, float]) -> StepDone:
    figures = {**figures, "grad_norm": progress.gradient_norm}
    return StepDone(progress.step, progress.steps, figures, seconds=progress.seconds)
