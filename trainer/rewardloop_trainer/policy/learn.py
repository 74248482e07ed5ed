"""Trains a policy by the algorithm that its settings name, in the daemon's rounds and in `policy-train` alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog

from rewardloop.formats.text import Encoder
from rewardloop.formats.vocabulary import Algorithm, OnlineAlgorithm
from rewardloop_trainer.data.preferences import Labelled, Pair, weighing
from rewardloop_trainer.data.weights.influence import cap_influence
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.policy.dpo_train import DpoProgress, train_policy
from rewardloop_trainer.policy.examples import Examples, NothingToLearnFrom, choose_algorithm
from rewardloop_trainer.policy.kto_train import KtoProgress, train_kto
from rewardloop_trainer.policy.online.algorithms import task_of
from rewardloop_trainer.policy.online.collect import Score
from rewardloop_trainer.policy.online.open_sampler import open_sampler
from rewardloop_trainer.policy.online.train import OnlineOutcome, train_online
from rewardloop_trainer.policy.pair_objectives import PairSettings
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.settings import PolicySettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run leaves.

    Attributes:
        policy: The trained policy.
        figures: The run's figures, by name.
        taken_back: Why an online run ended early: a step went beyond the bound of the KL, and was taken back; else "".
    """

    policy: Any
    figures: Mapping[str, float]
    taken_back: str = ""


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
        heldout: Examples that are measured after the last step, by the algorithms that learn from judgements alone.
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
    shares = settings.most_person_share, settings.most_source_share
    match choose_algorithm(settings.algorithm, train):
        case "dpo" | "simpo" | "orpo" as algorithm:
            pairs = cap_influence(_pairs(train, algorithm), *shares)
            judged = weighing(heldout.all_as_pairs())
            _learn_from_pairs(model, encoder, pairs, judged, settings, _of(algorithm, settings), control, reference)
        case "kto":
            thumbs = cap_influence(_thumbs(train), *shares)
            _learn_from_thumbs(model, encoder, thumbs, weighing(heldout.all_as_thumbs()), settings, control, reference)
        case online:
            _learn_from_answers(model, encoder, train, online, settings, score, control, reference)


def _of(algorithm: Algorithm, settings: PolicySettings) -> PairSettings:
    """The settings of an algorithm that learns from pairs."""
    match algorithm:
        case "simpo":
            return settings.simpo
        case "orpo":
            return settings.orpo
    return settings.dpo


def _pairs(train: Examples, algorithm: Algorithm) -> list[Pair]:
    """What ``train`` has for an algorithm that learns from pairs. Raises `NothingToLearnFrom`."""
    pairs = weighing(train.all_as_pairs())
    used = {pair.prompt for pair in pairs}
    alone = sum(thumb.prompt not in used for thumb in weighing(train.thumbs))
    if not pairs:
        hint = f"; kto, and so auto, learns from the {alone} thumbs that there are" if alone else ""
        raise NothingToLearnFrom(
            f"{algorithm} learns from pairs of different texts, and there is none to train on{hint}"
        )
    if alone:
        log.warning("thumbs without an opposite one for their prompt are left out: kto learns from them", thumbs=alone)
    return pairs


def _thumbs(train: Examples) -> list[Labelled]:
    """What ``train`` has for KTO. Raises `NothingToLearnFrom`."""
    thumbs = weighing(train.all_as_thumbs())
    if not thumbs:
        raise NothingToLearnFrom(
            "kto learns from thumbs, from ratings off the middle of their scale and from pairs, and there is none of "
            "them to train on"
        )
    return thumbs


def _learn_from_pairs(
    model: Any,
    encoder: Encoder,
    train: Sequence[Pair],
    heldout: Sequence[Pair],
    settings: PolicySettings,
    of_algorithm: PairSettings,
    control: PolicyControl,
    reference: Reference | None,
) -> None:
    train_policy(
        model,
        encoder,
        train,
        heldout,
        of_algorithm,
        RunControl(
            control.checkpoint_dir,
            lambda progress: control.on_step(_step_done(progress, progress.figures.shown())),
            control.should_stop,
            lambda outcome: control.save(Trained(model, outcome.figures)),
            control.on_start,
        ),
        seed=settings.seed,
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
            control.on_start,
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
    shares = settings.most_person_share, settings.most_source_share
    pairs = cap_influence(weighing(train.all_as_pairs()), *shares)
    task = task_of(algorithm, settings, encoder, train.prompts, pairs, settings.seed)
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
                lambda outcome: control.save(_trained(outcome, len(task.prompts))),
                control.on_start,
            ),
            seed=settings.seed,
            sampler=sampler,
            reference=reference,
        )


def _trained(outcome: OnlineOutcome, prompts: int) -> Trained:
    figures = {"train_prompts": float(prompts), "train_taken_back": float(outcome.taken_back is not None)}
    if outcome.kl is not None:
        figures["train_end_kl"] = outcome.kl
    return Trained(outcome.model, figures, str(outcome.taken_back or ""))


def _step_done(progress: DpoProgress | KtoProgress, figures: Mapping[str, float]) -> StepDone:
    figures = {**figures, "grad_norm": progress.gradient_norm}
    return StepDone(progress.step, progress.steps, figures, seconds=progress.seconds)
