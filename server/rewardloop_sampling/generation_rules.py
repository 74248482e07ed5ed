"""The rules of a checkpoint's generation config, applied by the logits processors of transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import logits_process

_processes: Any = logits_process  # its annotations of devices and ids are narrower than what it takes
# Fields with which `generate` does something that is not done here, and the values with which they do nothing.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "constraints": (None, []),
    "force_words_ids": (None, []),
    "penalty_alpha": (None, 0.0),
    "dola_layers": (None,),
    "use_mtp": (None, False),
    "prompt_lookup_num_tokens": (None, 0),
    "assistant_early_exit": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "forced_decoder_ids": (None, []),
    "stop_strings": (None, [], ""),
    "max_time": (None,),
    "token_healing": (None, False),
    "guidance_scale": (None, 1.0),
    "watermarking_config": (None,),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "remove_invalid_values": (None, False),
}


class UnsupportedGeneration(ValueError):
    """Raised when a generation config asks for a way of generating that is not supported."""


@dataclass(frozen=True, slots=True)
class GenerationRules:
    """What a checkpoint's generation config does to the logits, beside temperature and top_p.

    A request has its own temperature and top_p, so the config's are not used. Its lengths are not used either.

    Attributes:
        config: The generation config.
        end_ids: Ids that end an answer.
    """

    config: GenerationConfig
    end_ids: frozenset[int]

    @classmethod
    def of(cls, model: Any, end_ids: Collection[int]) -> GenerationRules:
        """Return the rules of a model. Raises `UnsupportedGeneration`."""
        config = model.generation_config
        found = [f"{name}={getattr(config, name)!r}" for name in _UNSUPPORTED if _is_set(config, name)]
        if found:
            raise UnsupportedGeneration(
                f"the generation config sets {', '.join(found)}, which is not supported: remove it from "
                "generation_config.json if answers may do without"
            )
        return cls(config, frozenset(end_ids))

    def processors(self, prompt_length: int, device: torch.device) -> list[Any]:
        """Return the processors that apply to every answer, in the order of `generate`.

        Args:
            prompt_length: Tokens of the prompt.
            device: Where the logits are.

        Returns:
            Functions of ids (rows, prompt_length + new tokens) and scores (rows, vocabulary), which return new scores.
        """
        config, found = self.config, []
        ends = torch.tensor(sorted(self.end_ids), device=device)
        if config.sequence_bias is not None:
            found.append(_processes.SequenceBiasLogitsProcessor(config.sequence_bias))
        if (config.repetition_penalty or 1.0) != 1.0:
            found.append(_processes.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        if config.no_repeat_ngram_size:
            found.append(_processes.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
        if config.bad_words_ids is not None:
            found.append(_processes.NoBadWordsLogitsProcessor(config.bad_words_ids, ends))
        if config.min_length and not config.min_new_tokens and self.end_ids:
            found.append(_processes.MinLengthLogitsProcessor(config.min_length, ends, device=device))
        if config.min_new_tokens and self.end_ids:
            found.append(
                _processes.MinNewTokensLengthLogitsProcessor(prompt_length, config.min_new_tokens, ends, device=device)
            )
        if config.exponential_decay_length_penalty is not None:
            penalty = config.exponential_decay_length_penalty
            found.append(_processes.ExponentialDecayLengthPenalty(penalty, ends, prompt_length))
        if config.suppress_tokens is not None:
            found.append(_processes.SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
        if config.begin_suppress_tokens is not None:
            found.append(
                _processes.SuppressTokensAtBeginLogitsProcessor(
                    config.begin_suppress_tokens, prompt_length, device=device
                )
            )
        return found

    def before_nucleus(self, scores: Tensor) -> Tensor:
        """Apply top_h and top_k to scores (rows, vocabulary) that are divided by the temperature."""
        config = self.config
        if getattr(config, "top_h", None) is not None:
            scores = _processes.TopHLogitsWarper(config.top_h)(None, scores)
        if config.top_k:
            scores = _processes.TopKLogitsWarper(config.top_k)(None, scores)
        return scores

    def after_nucleus(self, scores: Tensor) -> Tensor:
        """Apply min_p, typical_p and the cutoffs to scores (rows, vocabulary) to which top_p was applied."""
        config = self.config
        if config.min_p is not None:
            scores = _processes.MinPLogitsWarper(config.min_p)(None, scores)
        if (config.typical_p or 1.0) < 1.0:
            scores = _processes.TypicalLogitsWarper(config.typical_p)(None, scores)
        if config.epsilon_cutoff:
            scores = _processes.EpsilonLogitsWarper(config.epsilon_cutoff)(None, scores)
        if config.eta_cutoff:
            scores = _processes.EtaLogitsWarper(config.eta_cutoff, device=scores.device)(None, scores)
        return scores


class ProcessedRows:
    """Applies the rules' processors to the rows of a batch.

    Rows whose prompts have the same length, and that have as many tokens, are processed together. So no processor sees
    padding, and a row's scores do not depend on its neighbours.

    Args:
        rules: The rules.
        prompts: The prompt of each row.
        device: Where the logits are.
    """

    def __init__(self, rules: GenerationRules, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self._lengths = [len(prompt) for prompt in prompts]
        self._processors = {length: rules.processors(length, device) for length in set(self._lengths)}
        self._is_idle = not any(self._processors.values())
        width = max(self._lengths)
        self._padding = [width - length for length in self._lengths]
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        self._ids = torch.tensor(padded, device=device)
        self._groups = self._grouped()

    def scores(self, logits: Tensor) -> Tensor:
        """Return the scores that the rules make of logits, both (rows, vocabulary)."""
        if self._is_idle:
            return logits
        scores = logits.float()
        found = torch.empty_like(scores)
        for length, padding, rows in self._groups:
            ids, part = self._ids[rows, padding:], scores[rows]
            for processor in self._processors[length]:
                part = processor(ids, part)
            found[rows] = part
        return found

    def append(self, ids: Tensor) -> None:
        """Append a token, ``ids`` (rows,), to each row."""
        if not self._is_idle:
            self._ids = torch.cat([self._ids, ids.unsqueeze(-1)], dim=1)

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these rows alone, given by their indices."""
        if self._is_idle:
            return
        self._lengths = [self._lengths[row] for row in rows]
        unused = min(self._padding[row] for row in rows)
        self._padding = [self._padding[row] - unused for row in rows]
        self._ids = self._ids[torch.tensor(rows, device=self._ids.device), unused:]
        self._groups = self._grouped()

    def join(self, other: ProcessedRows) -> None:
        """Append the rows of another one with the same rules."""
        if self._is_idle:
            return
        self._processors |= other._processors
        self._lengths += other._lengths
        width = max(self._ids.shape[1], other._ids.shape[1])
        parts = []
        padding: list[int] = []
        for rows in (self, other):
            missing = width - rows._ids.shape[1]
            padding += [each + missing for each in rows._padding]
            parts.append(torch.nn.functional.pad(rows._ids, (missing, 0)))
        self._ids, self._padding = torch.cat(parts), padding
        self._groups = self._grouped()

    def _grouped(self) -> list[tuple[int, int, Tensor]]:
        """Return for each group the length of its prompts, its columns of padding, and its rows' indices."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, group in enumerate(zip(self._lengths, self._padding, strict=True)):
            groups.setdefault(group, []).append(row)
        return [(*group, torch.tensor(rows, device=self._ids.device)) for group, rows in groups.items()]


def _is_set(config: GenerationConfig, name: str) -> bool:
    return getattr(config, name, None) not in _UNSUPPORTED[name]
