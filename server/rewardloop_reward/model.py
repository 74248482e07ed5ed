"""The reward model: k linear score heads on one pooled state of a Hugging Face trunk, on tokens' counts and phrases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, cast

import torch
from torch import Tensor, nn

from rewardloop_reward.decoder_rows import states_at
from rewardloop_reward.described_tensors import load_described, save_described
from rewardloop_reward.neck import ClassifierNeck, Neck, load_neck, neck_weights, save_neck
from rewardloop_reward.phrases import PLACES, phrase_weights
from rewardloop_reward.step_scores import STEP_RULES, StepRule, combined, split_marks
from rewardloop_reward.trunk import load_trunk

# "classifier": as the sequence classifier does whose layers are the neck.
Pooling: TypeAlias = Literal["mean", "layers", "cls", "last", "classifier"]
HEADS = "heads.safetensors"
# The share of the layers after which "layers" reads the trunk a first time. The last layers of an encoder are shaped by
# what it was trained for, and lose part of what judgements of people depend on. The tokens' embeddings are read, too.
_MIDDLE = 2 / 3


class RewardNetwork(nn.Module):
    """Scores sequences of a prompt and a response.

    Encoders (BERT-type) are pooled over their real tokens, in the last layer ("mean") or in the embeddings, a middle
    layer and the last one ("layers"), at the first token ("cls") or as their own classifier does ("classifier").
    Decoders (Llama, Qwen, GPT-2) are pooled at the last real token ("last"). Padding is on the right and never changes
    a score. In shapes, B is the batch, S the padded length, d the width of what the heads read and k the number of
    heads.
    """

    def __init__(
        self, trunk: nn.Module, heads: int, pooling: Pooling, neck: Neck | None = None, width: int | None = None
    ) -> None:
        """Draw heads that read ``width`` values, by default the trunk's."""
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling
        # How the scores of a decoder's steps become one, and whether they are probabilities; None: no steps.
        self.steps: StepRule | None = None
        self.has_probabilities = False
        self.neck = neck
        width = int(cast(Any, trunk).config.hidden_size) if width is None else width
        self.heads = nn.Linear(width, heads)
        nn.init.normal_(self.heads.weight, std=1 / math.sqrt(width + 1))
        nn.init.zeros_(self.heads.bias)
        # The level of thumbs and ratings of the trainer's losses; it is not part of a score.
        self.threshold = nn.Parameter(torch.zeros(heads))
        # The weight that each token adds to the logits, (vocabulary, k). `linear_start` fits it; most bases have none.
        self.words: nn.Embedding | None = None
        # The weight that each phrase adds, (`phrases.PLACES`, k), likewise.
        self.phrases: nn.Embedding | None = None

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
        if self.steps is not None:
            return self._by_steps(self.steps, input_ids, attention_mask)
        inputs: dict[str, Tensor] = {"input_ids": input_ids}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if not self.is_decoder:
            inputs["attention_mask"] = attention_mask
        if isinstance(self.neck, ClassifierNeck):
            logits = self._scored(self.neck(self.trunk, inputs))
        else:
            logits = self._logits(self._pooled(inputs, attention_mask))
        if self.words is not None:
            logits = logits + (self.words(input_ids) * attention_mask.unsqueeze(-1).to(logits.dtype)).sum(1)
        if self.phrases is not None:
            columns = torch.arange(input_ids.shape[1], device=input_ids.device)
            is_earlier = (columns[None, None] < columns[None, :, None]) & attention_mask.bool().unsqueeze(1)
            previous = torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids[:, :-1]], dim=1)
            added = phrase_weights(self.phrases, input_ids, previous, is_earlier)
            logits = logits + (added * attention_mask.unsqueeze(-1).to(logits.dtype)).sum(1)
        return logits

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
        states = states_at(self.trunk, self.token_ids(input_ids), position_ids, mask)
        return self.logits_at_ends(states, input_ids, position_ids, mask, ends)

    @property
    def needs_mask(self) -> bool:
        """Whether `logits_at_ends` reads the mask: for steps, and for weights of words and phrases."""
        return self.steps is not None or self.words is not None or self.phrases is not None

    def token_ids(self, input_ids: Tensor) -> Tensor:
        """Return the ids that the trunk reads, without the marks of steps, of ids (B, S)."""
        return input_ids if self.steps is None else split_marks(input_ids)[0]

    def logits_at_ends(
        self, states: Tensor, input_ids: Tensor, position_ids: Tensor, mask: Tensor | None, ends: Tensor
    ) -> Tensor:
        """Score sequences of a decoder by the trunk's states (B, S, d), which somebody else may have computed.

        The other arguments and the result are those of `at_ends`. The mask may be None unless `needs_mask`.
        """
        if mask is None:
            return self._logits(states.reshape(-1, states.shape[-1]).index_select(0, ends))
        if self.steps is not None:
            return self._by_steps_at_ends(self.steps, states, input_ids, mask, ends)
        logits = self._logits(states.reshape(-1, states.shape[-1]).index_select(0, ends))
        if self.words is not None or self.phrases is not None:
            of_tokens = self._of_tokens(input_ids, position_ids, mask.squeeze(1))
            of_prefixes = torch.matmul(mask.squeeze(1).to(of_tokens.dtype), of_tokens)
            logits = logits + of_prefixes.reshape(-1, of_prefixes.shape[-1]).index_select(0, ends)
        return logits

    def _of_tokens(self, input_ids: Tensor, position_ids: Tensor, is_seen: Tensor) -> Tensor:
        """Return the weight that each token adds where it is seen, (B, S, k); ``is_seen`` is (B or 1, S, S)."""
        found = torch.zeros((), device=input_ids.device)
        if self.words is not None:
            found = found + self.words(input_ids)
        if self.phrases is not None:
            behind = position_ids.unsqueeze(2) - position_ids.unsqueeze(1)
            # Float32 holds every id below 2**24.
            ids = input_ids.to(torch.float32).unsqueeze(-1)
            previous = torch.matmul((is_seen & (behind == 1)).to(torch.float32), ids).squeeze(-1).to(torch.long)
            found = found + phrase_weights(self.phrases, input_ids, previous, is_seen & (behind > 0))
        return found

    def add_words(self) -> nn.Embedding:
        """Return the weights of the tokens. They are made with zeros, which change no logit, if there are none."""
        if self.words is None:
            self.words = nn.Embedding(self.vocabulary, self.heads.out_features)
            nn.init.zeros_(self.words.weight)
        return self.words

    def add_phrases(self) -> nn.Embedding:
        """Return the weights of the phrases. They are made with zeros, which change no logit, if there are none."""
        if self.phrases is None:
            self.phrases = nn.Embedding(PLACES, self.heads.out_features)
            nn.init.zeros_(self.phrases.weight)
        return self.phrases

    def _pooled(self, inputs: Mapping[str, Tensor], attention_mask: Tensor) -> Tensor:
        """Run the trunk, and pool its states to (B, d)."""
        if self.pooling != "layers":
            return _pool(self.trunk(**inputs).last_hidden_state, attention_mask, self.pooling)
        found = self.trunk(**inputs, output_hidden_states=True)
        middle = found.hidden_states[round((len(found.hidden_states) - 1) * _MIDDLE)]
        read = (found.hidden_states[0], middle, found.last_hidden_state)
        # Heads of two widths are of a version from before the embeddings were read.
        read = read[-(self.heads.in_features // int(self.config.hidden_size)) :]
        return torch.cat([_pool(states, attention_mask, "mean") for states in read], dim=-1)

    def _by_steps(self, rule: StepRule, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score sequences as `forward` does, by their steps. The last real token ends the last step."""
        ids, is_end = split_marks(input_ids)
        columns = torch.arange(ids.shape[1], device=ids.device)[None]
        is_end = (is_end & attention_mask.bool()) | (columns == attention_mask.sum(1, keepdim=True) - 1)
        states: Tensor = self.trunk(input_ids=ids).last_hidden_state
        return combined(rule, self._step_scores(states), is_end)

    def _by_steps_at_ends(
        self, rule: StepRule, states: Tensor, input_ids: Tensor, mask: Tensor, ends: Tensor
    ) -> Tensor:
        """Score sequences as `logits_at_ends` does, by the steps that their ends see."""
        is_end = split_marks(input_ids)[1]
        rows, length = input_ids.shape
        scores = self._step_scores(states)
        row = ends // length
        seen = mask.expand(rows, 1, length, length).reshape(rows * length, length).index_select(0, ends)
        is_last = torch.arange(length, device=ends.device)[None] == (ends - row * length)[:, None]
        return combined(rule, scores.index_select(0, row), (seen & is_end.index_select(0, row)) | is_last)

    def _step_scores(self, states: Tensor) -> Tensor:
        """Return the score (B, S, k) that each token would have as the end of a step."""
        rows, length, width = states.shape
        logits = self._logits(states.reshape(rows * length, width)).reshape(rows, length, -1)
        return logits.sigmoid() if self.has_probabilities else logits

    def _logits(self, pooled: Tensor) -> Tensor:
        return self._scored(pooled if self.neck is None else self.neck(pooled))

    def _scored(self, read: Tensor) -> Tensor:
        """Logits of what the heads read. The heads compute in their own type, whatever that of the trunk is."""
        kind = self.heads.weight.dtype
        read = read if read.dtype == kind else read.to(kind)
        if torch.is_autocast_enabled(read.device.type):
            with torch.autocast(read.device.type, enabled=False):
                return cast(Tensor, self.heads(read))
        return cast(Tensor, self.heads(read))

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
        if self.words is not None:
            tensors["words.weight"] = self.words.weight
        if self.phrases is not None:
            tensors["phrases.weight"] = self.phrases.weight
        of_neck, about = save_neck(self.neck)
        pooler = "yes" if getattr(self.trunk, "pooler", None) is not None else ""
        about |= {"steps": self.steps or "", "probabilities": "yes" if self.has_probabilities else ""}
        save_described(directory / HEADS, tensors | of_neck, {"pooling": self.pooling, "pooler": pooler, **about})

    def load_heads(self, directory: Path) -> None:
        """Load what `save_heads` wrote of a model with the same heads and neck. Raises `UnusableBase`."""
        stored, _ = load_described(directory / HEADS)
        with torch.no_grad():
            self.heads.weight.copy_(stored["heads.weight"])
            self.heads.bias.copy_(stored["heads.bias"])
            self.threshold.copy_(stored["threshold"])
            if "words.weight" in stored:
                self.add_words().weight.copy_(stored["words.weight"])
            if "phrases.weight" in stored:
                self.add_phrases().weight.copy_(stored["phrases.weight"])
            if self.neck is not None:
                self.neck.load_state_dict(neck_weights(stored))

    def with_heads(self, directory: Path) -> Self:
        """Return a model of the heads in a delta's directory over this one's trunk, neck, words and phrases.

        They share these. Raises `UnusableBase`.
        """
        stored, _ = load_described(directory / HEADS)
        heads, width = stored["heads.weight"].shape
        model = type(self)(self.trunk, heads, self.pooling, self.neck, width)
        model.steps, model.has_probabilities = self.steps, self.has_probabilities
        model.words, model.phrases = self.words, self.phrases
        with torch.no_grad():
            model.heads.weight.copy_(stored["heads.weight"])
            model.heads.bias.copy_(stored["heads.bias"])
        return model.eval()

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Load what `save` wrote, in evaluation mode. Raises `UnusableBase`."""
        stored, about = load_described(directory / HEADS)
        trunk, _ = load_trunk(str(directory), pooler=about.get("pooler") == "yes")
        neck = load_neck(cast(Any, trunk).config, stored, about)
        heads, width = stored["heads.weight"].shape
        model = cls(trunk, heads, cast(Pooling, about["pooling"]), neck, width)
        model.steps = next((rule for rule in STEP_RULES if rule == about.get("steps")), None)
        model.has_probabilities = about.get("probabilities") == "yes"
        model.load_heads(directory)
        return model.eval()


def _pool(states: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool states (B, S, d) to (B, d)."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "mean":
        is_token = attention_mask.to(states.dtype).unsqueeze(-1)
        return (states * is_token).sum(1) / is_token.sum(1)
    last = attention_mask.sum(1) - 1
    return torch.gather(states, 1, last.view(-1, 1, 1).expand(-1, 1, states.shape[-1])).squeeze(1)
