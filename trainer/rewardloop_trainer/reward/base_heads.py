"""Finds the trained head of a Hugging Face base, and refuses to drop one or to assemble it wrongly."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.base_model import load_complete, load_trunk, some_of, text_model

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
}
SCORE_TOLERANCE = 1e-4
_SEQUENCES, _LONGEST = 8, 48  # on which scores are compared
_CLASSIFIER_LAYERS = ("score.", "classifier.", "pre_classifier.")
_OFFER = "--new-heads (reward.new_heads of the trainer) drops it and draws new heads"


@dataclass(frozen=True, slots=True)
class HeadStart:
    """The layers of a one-label sequence classifier that heads start with, and what the classifier computes.

    Attributes:
        weight: Of the last layer, (1, hidden).
        bias: Of the last layer, (1,).
        neck: The layer between the trunk and the last layer, if there is one.
        ids: Random sequences, each (1, S).
        logits: The classifier's logit of each sequence.
    """

    weight: Tensor
    bias: Tensor
    neck: nn.Sequential | None
    ids: tuple[Tensor, ...]
    logits: tuple[float, ...]

    def check(self, base: str, model: nn.Module) -> None:
        """Check that a reward model gives the classifier's logits.

        Args:
            base: Named in the error.
            model: Maps ids and mask, both (1, S), to logits (1, heads).

        Raises:
            UnusableBase: If the mean of its heads differs by more than `SCORE_TOLERANCE`.
        """
        with torch.no_grad():
            ours = [float(model(ids, torch.ones_like(ids)).mean()) for ids in self.ids]
        differences = [abs(mine - theirs) for mine, theirs in zip(ours, self.logits, strict=True)]
        if not all(difference <= SCORE_TOLERANCE for difference in differences):  # nor is any of them NaN
            raise UnusableBase(
                f"{base}: its scores as a reward model differ from those of its own class by up to "
                f"{max(differences):.2g}: "
                f"the layers of its head are not known; {_OFFER}"
            )


def load_start(base: str, config: Any, *, decodes: bool, new_heads: bool) -> tuple[nn.Module, HeadStart | None]:
    """Load the trunk of a base, and its head if it is a sequence classifier with one label.

    Args:
        base: Hugging Face directory or hub id.
        config: Its configuration.
        decodes: Whether it is a decoder.
        new_heads: Ignore the head.

    Raises:
        UnusableBase: If the base cannot be loaded, or has a head that cannot be used and ``new_heads`` is False.
    """
    names = config.architectures or []
    if not new_heads and names and names[0].endswith("ForSequenceClassification"):
        if config.num_labels != 1:
            raise UnusableBase(
                f"{base}: a classifier with {config.num_labels} labels, and which of them would be the score is not "
                f"known; {_OFFER}"
            )
        return _load_classifier(base, decodes)
    trunk, heads = load_trunk(base)
    if new_heads or not heads:
        return trunk, None
    if not names and all(name.startswith(_CLASSIFIER_LAYERS) for name in heads):
        return _load_classifier(base, decodes)
    raise UnusableBase(f"{base}: the checkpoint has a trained head that is not known: {some_of(heads)}; {_OFFER}")


def activation_name(module: nn.Module) -> str:
    """Return the name in `ACTIVATIONS` of the function that a module computes. Raises `UnusableBase` for another."""
    values = torch.linspace(-4, 4, 33)
    with torch.no_grad():
        for name, kind in ACTIVATIONS.items():
            if torch.allclose(kind()(values), module(values), rtol=0, atol=1e-6):
                return name
    raise UnusableBase(f"the activation {type(module).__name__} of a head is not known; {_OFFER}")


def _load_classifier(base: str, decodes: bool) -> tuple[nn.Module, HeadStart]:
    """Load a one-label sequence classifier as its trunk and the start of the heads."""
    try:
        loaded, heads = load_complete(AutoModelForSequenceClassification, base, num_labels=1)
    except UnusableBase as error:
        raise UnusableBase(f"{error} (read as a sequence classifier with one label; {_OFFER})") from error
    if heads:
        raise UnusableBase(f"{base}: the classifier does not use all trained weights: {some_of(heads)}; {_OFFER}")
    whole = cast(Any, loaded.eval())
    trunk = cast(Any, text_model(whole.base_model))
    last, neck = _layers(base, whole, decodes)
    sequences = _random_ids(whole)
    with torch.no_grad():
        logits = tuple(float(whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits) for ids in sequences)
    if getattr(trunk, "pooler", None) is not None:
        trunk.pooler = None
    bias = torch.zeros(1) if last.bias is None else last.bias.detach()
    return trunk, HeadStart(last.weight.detach(), bias, neck, sequences, logits)


def _layers(base: str, whole: Any, decodes: bool) -> tuple[nn.Linear, nn.Sequential | None]:
    """Return a classifier's last layer, and the layer between it and the trunk."""
    classifier: Any = getattr(whole, "classifier", None)
    pooler: Any = getattr(whole.base_model, "pooler", None)
    last, dense, activation = classifier, None, cast(nn.Module, nn.Tanh())
    if decodes:
        last = getattr(whole, "score", None)
    elif hasattr(classifier, "out_proj"):  # RoBERTa applies tanh without a module, ELECTRA has one
        last, dense = classifier.out_proj, classifier.dense
        activation = getattr(classifier, "activation", activation)
    elif hasattr(whole, "pre_classifier"):  # DistilBERT
        dense, activation = whole.pre_classifier, nn.ReLU()
    elif hasattr(pooler, "activation"):  # BERT
        dense, activation = pooler.dense, pooler.activation
    if not isinstance(last, nn.Linear) or (dense is None and not decodes):
        raise UnusableBase(f"{base}: the classification layers of {type(whole).__name__} are not known; {_OFFER}")
    return last, None if dense is None else nn.Sequential(dense, ACTIVATIONS[activation_name(activation)]())


def _random_ids(whole: Any) -> tuple[Tensor, ...]:
    """Return sequences of random tokens without padding, of 2 tokens or more, each (1, S)."""
    config = whole.config.get_text_config()
    chance, pad = random.Random(0), config.pad_token_id
    rows = whole.get_input_embeddings().num_embeddings
    longest = min(_LONGEST, (getattr(config, "max_position_embeddings", None) or _LONGEST * 2) // 2)
    usable = [i for i in (chance.randrange(rows) for _ in range(10 * _SEQUENCES * longest)) if i != pad]
    lengths = [chance.randint(2, longest) for _ in range(_SEQUENCES)]
    return tuple(torch.tensor([usable[i * longest : i * longest + n]]) for i, n in enumerate(lengths))
