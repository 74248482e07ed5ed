"""A reward model that judges policies and trains none: it has heads, a seed and signals of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rewardloop.formats.text import Encoded, Encoder, RefusedConversation
from rewardloop_trainer.data.length_share import NO_SHARE, LengthShare
from rewardloop_trainer.data.preferences import Prompt, Record
from rewardloop_trainer.evaluation.evidence import evidence_of, read_evidence
from rewardloop_trainer.evaluation.reward_gate import RewardGateRules, agreement, beats_chance, evidence_figures
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.vocabulary import Reason

_TOKEN_BUDGET = 4096


class NoJudge(Exception):
    """Raised when there is no judge that is shown to agree with people. The argument says why."""


@dataclass(frozen=True, slots=True)
class PolicyJudge:
    """Scores answers in this process. Scores of different prompts are not comparable, those of one prompt are.

    Attributes:
        model: The model.
        encoder: Its tokenizer and text layout.
        length: What its calibration takes off because of length.
    """

    model: RewardModel
    encoder: Encoder
    length: LengthShare = NO_SHARE

    def score(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return the score of each text; None for an empty one, and for a conversation that the judge cannot read."""
        groups = self.encoder.groups(list(zip(prompts, (tuple(group) for group in texts), strict=True)))
        places: list[tuple[int, int]] = []
        sequences: list[Encoded] = []
        for i, group in enumerate(groups):
            if isinstance(group, RefusedConversation):
                continue
            for j, sequence in enumerate(group):
                if texts[i][j].strip():
                    places.append((i, j))
                    sequences.append(sequence)
        scores: list[list[float | None]] = [[None] * len(group) for group in texts]
        if sequences:
            self.model.eval()
            with torch.inference_mode():
                logits = logits_of(self.model, sequences, self.encoder.format.pad, _TOKEN_BUDGET).double().mean(1)
            shares = self.length.of(sequences)
            for (i, j), logit, share in zip(places, logits.tolist(), shares.tolist(), strict=True):
                scores[i][j] = logit - share
        return scores

    def agreement(self, heldout: Sequence[Record], least_prompts: float) -> tuple[dict[str, float], list[Reason]]:
        """Measure how often the judge agrees with people on signals that nothing learned from.

        Returns:
            Figures for the manifest, and why the judge is not shown to agree with people; none if it is.
        """
        evidence = evidence_of(heldout)
        readings = read_evidence(self.model, self.encoder, evidence, self.length)
        accuracy, auc = agreement(evidence, readings).values()
        figures = {
            "gate_judge_needed": evidence_figures(evidence, least_prompts)["gate_needed"],
            "gate_judge_accuracy": accuracy.mean,
            "gate_judge_accuracy_lower": accuracy.lower(0.05),
            "gate_judge_auc": auc.mean,
            "gate_judge_auc_lower": auc.lower(0.05),
        }
        reasons = beats_chance(evidence, readings, RewardGateRules(least_prompts=least_prompts))
        return {name: value for name, value in figures.items() if abs(value) < float("inf")}, reasons
