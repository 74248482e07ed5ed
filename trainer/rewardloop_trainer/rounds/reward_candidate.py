"""A reward model between its start and its export: the weights that learn, and the files of what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog
import torch

from rewardloop_trainer.export.candidate import is_delta
from rewardloop_trainer.reward.lora import LORA, as_delta, load_delta, save_delta, with_lora
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import RewardStart

log = structlog.get_logger()


def choose_weights(start: RewardStart, settings: RewardHyperparameters) -> tuple[bool, RewardHyperparameters]:
    """Put adapters on the start's model if they are to learn.

    Returns:
        Whether they become a delta, and the settings to train with. A delta has no weights of tokens and phrases and no
        linear fit, because the graph that it runs over has no such weights, or keeps its own.
    """
    if is_delta(start, settings):
        as_delta(start.model, settings.lora)
        return True, settings.model_copy(update={"words": False, "phrases": False, "linear_start": 0})
    if settings.delta:
        log.info("the live graph takes no such adapters: this run makes a whole version")
    start.model.merge_lora()
    if settings.method == "lora":
        with_lora(start.model, settings.lora)
    return False, settings


def save_trained(
    model: RewardModel,
    settings: RewardHyperparameters,
    directory: Path,
    start: Callable[[], RewardStart],
    *,
    makes_delta: bool,
) -> None:
    """Write what `load_trained` reads.

    Args:
        model: The trained model.
        settings: The settings that `choose_weights` returned.
        directory: Where to write.
        start: Loads the start again, for adapters that learned on rounded weights: they are merged into exact ones.
        makes_delta: Whether `choose_weights` said that the adapters become a delta.
    """
    if makes_delta:
        save_delta(model, directory)
        return
    if settings.method == "lora" and settings.weights != "float32":
        model = _on_exact_weights(model, start(), settings)
    model.merge_lora()
    model.save(directory)


def load_trained(directory: Path, start: Callable[[], RewardStart]) -> RewardModel:
    """Load the candidate. One that becomes a delta has its adapters on the trunk, not merged into it.

    Raises:
        ValueError: If there are adapters, but training started without a live version.
        UnusableBase: If the files cannot be read.
    """
    if not (directory / LORA).exists():
        return RewardModel.load(directory)
    trunk = start().trunk
    if trunk is None:
        raise ValueError("adapters are trained on a live version's trunk")
    return load_delta(trunk.model(), directory)


@torch.no_grad()
def _on_exact_weights(model: RewardModel, start: RewardStart, settings: RewardHyperparameters) -> RewardModel:
    choose_weights(start, settings)
    exact = dict(start.model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exact[name].copy_(parameter)
    return start.model
