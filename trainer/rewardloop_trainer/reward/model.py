"""A reward model that learns: made on a Hugging Face base, trained, and merged with its adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, cast

import torch

from rewardloop_reward.model import HEADS as HEADS
from rewardloop_reward.model import Pooling as Pooling
from rewardloop_reward.model import RewardNetwork
from rewardloop_reward.trunk import is_decoder, read_config
from rewardloop_trainer.reward.base_heads import load_start
from rewardloop_trainer.reward.heads.choice import HeadChoice
from rewardloop_trainer.reward.row_check import check_padding, check_rows

_LAYERS_READ = 3  # by the pooling "layers": the embeddings, a middle layer and the last one
_OWN_HEAD = HeadChoice.model_validate({})


class RewardModel(RewardNetwork):
    """Scores sequences as `RewardNetwork` does, and is made of a base or of a version's directory."""

    # What `from_base` found: whether it drew the heads, whether the class of the checkpoint's head reads before padding
    # tokens at the end of a sequence, and which head of the checkpoint the score is.
    has_new_heads = False
    skips_padding = False
    head_note = ""

    def merge_lora(self) -> None:
        """Merge adapters into the trunk's weights, if it has any."""
        if hasattr(self.trunk, "merge_and_unload"):
            self.trunk = cast(Any, self.trunk).merge_and_unload()
            self.requires_grad_(True)

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        heads: int = 4,
        pooling: Literal["auto", "mean", "layers", "cls"] = "auto",
        seed: int = 0,
        choice: HeadChoice = _OWN_HEAD,
    ) -> Self:
        """Make a new reward model on a Hugging Face model, from safetensors and without remote code.

        A base with a trained head keeps the head's layers and pooling, and every score head starts as its last layer,
        or as the sum of its labels that is the score. The model then gives the logits of the head's own class, which is
        checked.

        Args:
            base: Hugging Face directory or hub id.
            heads: Number of score heads.
            pooling: How an encoder is pooled; "auto" is "layers".
            seed: New heads are drawn with it.
            choice: Which head of the checkpoint the score is, or that new ones are wanted.

        Raises:
            UnusableBase: If the base cannot be loaded, a reward model cannot be made of it, or trained heads of the
                checkpoint would be dropped without ``choice.new_heads``.
        """
        base = str(base)
        config = read_config(base)
        decodes = is_decoder(config)
        torch.manual_seed(seed)
        trunk, start = load_start(base, config, decodes=decodes, choice=choice)
        if start is None:
            kind: Pooling = "last" if decodes else "layers" if pooling == "auto" else pooling
            width = int(cast(Any, trunk).config.hidden_size) * (_LAYERS_READ if kind == "layers" else 1)
            model = cls(trunk, heads, kind, width=width).eval()
            model.has_new_heads = True
            model.head_note = f"new, drawn with seed {seed}"
        else:
            model = cls(trunk, heads, "last" if decodes else "classifier", start.neck, start.weight.shape[1]).eval()
            model.skips_padding, model.head_note = start.skips_padding, start.note
            model.heads.weight.data.copy_(start.weight.expand(heads, -1))
            model.heads.bias.data.copy_(start.bias.expand(heads))
            start.check(base, model)
            if choice.step_scores is not None and choice.step_scores != "last":
                model.steps, model.has_probabilities = choice.step_scores, start.labels == 2
        if decodes:
            check_rows(base, model)
        else:
            check_padding(base, trunk)
        return model
