"""The reward model: k linear score heads on one pooled state of a Hugging Face trunk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.base_heads import ACTIVATIONS, activation_name, load_start
from rewardloop_trainer.reward.base_model import is_decoder, load_trunk, read_config
from rewardloop_trainer.reward.decoder_rows import states_at
from rewardloop_trainer.reward.row_check import check_rows

Pooling: TypeAlias = Literal["mean", "cls", "last"]
HEADS = "heads.safetensors"


class RewardModel(nn.Module):
    """Scores sequences of a prompt and a response.

    Encoders (BERT-type) are pooled over their real tokens ("mean") or at the first token ("cls"), decoders (Llama,
    Qwen, GPT-2) at the last real token ("last"). Padding is on the right and never changes a score. In shapes, B is the
    batch, S the padded length, d the width of the trunk and k the number of heads.
    """

    has_new_heads = False  # whether `from_base` drew the heads, and did not take them from the checkpoint

    def __init__(self, trunk: nn.Module, heads: int, pooling: Pooling, neck: nn.Sequential | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling
        self.neck = neck
        width = int(cast(Any, trunk).config.hidden_size)
        self.heads = nn.Linear(width, heads)
        nn.init.normal_(self.heads.weight, std=1 / math.sqrt(width + 1))
        nn.init.zeros_(self.heads.bias)
        # The level of thumbs and ratings (`losses.pointwise`); it is not part of a score.
        self.threshold = nn.Parameter(torch.zeros(heads))

    @property
    def is_decoder(self) -> bool:
        return self.pooling == "last"

    @property
    def config(self) -> Any:
        """The trunk's Hugging Face configuration."""
        return cast(Any, self.trunk).config

    @property
    def vocabulary(self) -> int:
        """Rows of the trunk's input embedding: a token's id must be below."""
        return int(cast(Any, self.trunk).get_input_embeddings().num_embeddings)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Score right-padded sequences.

        A decoder's attention is causal, so its real tokens never see the padding after them.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 1 at real tokens and 0 at padding.
            token_type_ids: (B, S), for trunks with segments.

        Returns:
            Logits (B, k).
        """
        inputs: dict[str, Tensor] = {"input_ids": input_ids}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if not self.is_decoder:
            inputs["attention_mask"] = attention_mask
        states: Tensor = self.trunk(**inputs).last_hidden_state
        return self._logits(_pool(states, attention_mask, self.pooling))

    def at_ends(self, input_ids: Tensor, position_ids: Tensor, mask: Tensor, ends: Tensor) -> Tensor:
        """Score N sequences of a decoder in rows with given positions and attention; this form is exported.

        Args:
            input_ids: (B, S).
            position_ids: (B, S).
            mask: (B, 1, S, S), bool; True if the token of the third axis sees that of the fourth.
            ends: (N,), flat index row * S + column of the last token of each sequence.

        Returns:
            Logits (N, k).
        """
        states = states_at(self.trunk, input_ids, position_ids, mask)
        return self._logits(states.reshape(-1, states.shape[-1]).index_select(0, ends))

    def _logits(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.heads(pooled if self.neck is None else self.neck(pooled))
        return logits

    def merge_lora(self) -> None:
        """Merge adapters into the trunk's weights, if it has any."""
        if hasattr(self.trunk, "merge_and_unload"):
            self.trunk = cast(Any, self.trunk).merge_and_unload()
            self.requires_grad_(True)

    def save(self, directory: Path) -> None:
        """Write config.json, model.safetensors and heads.safetensors. Raises ValueError if adapters are not merged."""
        if hasattr(self.trunk, "merge_and_unload"):
            raise ValueError("merge the adapters before saving the model")
        cast(Any, self.trunk).save_pretrained(directory)
        self.save_heads(directory)

    def save_heads(self, directory: Path) -> None:
        """Write heads.safetensors, which holds everything but the trunk."""
        tensors = {
            "heads.weight": self.heads.weight,
            "heads.bias": self.heads.bias,
            "threshold": self.threshold,
        }
        activation = ""
        if self.neck is not None:
            dense = cast(nn.Linear, self.neck[0])
            tensors |= {"neck.weight": dense.weight, "neck.bias": dense.bias}
            activation = activation_name(self.neck[1])
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, directory / HEADS, {"pooling": self.pooling, "activation": activation})

    def load_heads(self, directory: Path) -> None:
        """Load what `save_heads` wrote of a model with the same heads and neck. Raises `UnusableBase`."""
        stored, _ = _stored_heads(directory)
        with torch.no_grad():
            self.heads.weight.copy_(stored["heads.weight"])
            self.heads.bias.copy_(stored["heads.bias"])
            self.threshold.copy_(stored["threshold"])
            if self.neck is not None:
                dense = cast(nn.Linear, self.neck[0])
                dense.weight.copy_(stored["neck.weight"])
                dense.bias.copy_(stored["neck.bias"])

    @classmethod
    def load(cls, directory: Path) -> RewardModel:
        """Load what `save` wrote, in evaluation mode. Raises `UnusableBase`."""
        trunk, _ = load_trunk(str(directory))
        stored, about = _stored_heads(directory)
        neck = None
        if about["activation"]:
            rows, columns = stored["neck.weight"].shape
            neck = nn.Sequential(nn.Linear(columns, rows), ACTIVATIONS[about["activation"]]())
        model = cls(trunk, stored["heads.weight"].shape[0], cast(Pooling, about["pooling"]), neck)
        model.load_heads(directory)
        return model.eval()

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        heads: int = 4,
        pooling: Literal["auto", "mean", "cls"] = "auto",
        seed: int = 0,
        *,
        new_heads: bool = False,
    ) -> RewardModel:
        """Make a new reward model on a Hugging Face model, from safetensors and without remote code.

        A sequence classifier with one label keeps its own pooling, and every head starts as its last layer. The model
        then gives the classifier's own logits, which is checked.

        Args:
            base: Hugging Face directory or hub id.
            heads: Number of score heads.
            pooling: How an encoder is pooled; "auto" is the mean.
            seed: New heads are drawn with it.
            new_heads: Draw new heads, even if the checkpoint has trained ones.

        Raises:
            UnusableBase: If the base cannot be loaded, a reward model cannot be made of it, or trained heads of the
                checkpoint would be dropped without ``new_heads``.
        """
        base = str(base)
        config = read_config(base)
        decodes = is_decoder(config)
        torch.manual_seed(seed)
        trunk, start = load_start(base, config, decodes=decodes, new_heads=new_heads)
        chosen: Pooling = "mean" if pooling == "auto" else pooling
        if decodes:
            chosen = "last"
        elif start is not None:
            chosen = "cls"
        model = cls(trunk, heads, chosen, start.neck if start else None)
        model.has_new_heads = start is None
        if start is not None:
            model.heads.weight.data.copy_(start.weight.expand(heads, -1))
            model.heads.bias.data.copy_(start.bias.expand(heads))
            start.check(base, model.eval())
        if decodes:
            check_rows(base, model.eval())
        return model.eval()


def freeze_layers(model: RewardModel, layers: int) -> None:
    """Freeze the embeddings and the lowest ``layers`` layers; 0 freezes nothing.

    Raises:
        ValueError: If the model has fewer layers.
    """
    if layers == 0:
        return
    stacks = [m for m in model.trunk.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    stack = max(stacks, key=len)
    if layers > len(stack):
        raise ValueError(f"cannot freeze {layers} layers of {len(stack)}")
    last = list(stack[layers - 1].parameters())[-1]
    for parameter in model.trunk.parameters():  # in the order of the computation
        parameter.requires_grad_(False)
        if parameter is last:
            return


def _stored_heads(directory: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(directory / HEADS, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - no mapping
    except (OSError, ValueError) as error:
        raise UnusableBase(f"{directory / HEADS}: {error}") from error


def _pool(states: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool states (B, S, d) to (B, d)."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "mean":
        is_token = attention_mask.to(states.dtype).unsqueeze(-1)
        return (states * is_token).sum(1) / is_token.sum(1)
    last = attention_mask.sum(1) - 1
    return torch.gather(states, 1, last.view(-1, 1, 1).expand(-1, 1, states.shape[-1])).squeeze(1)
