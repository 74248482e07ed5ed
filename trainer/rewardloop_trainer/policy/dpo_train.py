"""Training a policy on preference pairs with DPO, SimPO or ORPO.

A killed run goes on from its checkpoint to the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.completions import Completion, encode_completions, token_logprobs
from rewardloop_trainer.data.computing.shards import in_step
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.data.token_batches import by_length, plan_batches
from rewardloop_trainer.learning.offline_run import OfflineRun, PolicyOutcome, Progress, sample_to_compare
from rewardloop_trainer.learning.run_control import NO_CONTROL, NothingToLearnFrom, RunControl
from rewardloop_trainer.policy.losses.kl import kl_estimate
from rewardloop_trainer.policy.offline_settings import DpoSettings
from rewardloop_trainer.policy.pair_objectives import PairSettings, objective_of
from rewardloop_trainer.policy.reference import Reference


@dataclass(frozen=True, slots=True)
class PolicyPair:
    """A pair as token sequences.

    Attributes:
        chosen: The preferred response.
        rejected: The other one.
        weight: Scales its share of the loss.
        strength: How strong the preference is, from 0 (not said) to 1; of merged pairs the weighted mean.
    """

    chosen: Completion
    rejected: Completion
    weight: float
    strength: float = 0.0

    @property
    def rows(self) -> tuple[Completion, Completion]:
        return self.chosen, self.rejected

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return max(len(row.ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class PolicyPairs:
    """Encoded pairs, and what became of the others.

    Attributes:
        pairs: The pairs to train on.
        merged: Number of pairs whose texts repeat another pair's; their weight was added to that pair.
        identical: Number of pairs dropped because both responses are the same text.
        over_length: Number of pairs dropped because a sequence is longer than the encoder's maximum.
    """

    pairs: tuple[PolicyPair, ...]
    merged: int
    identical: int
    over_length: int


@dataclass(frozen=True, slots=True)
class DpoFigures:
    """Means over a set of pairs, in nats except for ``accuracy``.

    Attributes:
        loss: The loss that is trained on.
        accuracy: Share of pairs whose chosen response has the higher implicit reward, in DPO beta * log(pi / ref);
            equal rewards count half.
        margin: Implicit reward of the chosen response minus that of the rejected one.
        chosen_log_ratio: log(pi / ref) of the chosen response.
        rejected_log_ratio: log(pi / ref) of the rejected response.
        kl: Estimate of KL(reference || policy) per sequence, as if the responses had been sampled from the reference.
    """

    loss: float
    accuracy: float
    margin: float
    chosen_log_ratio: float
    rejected_log_ratio: float
    kl: float

    def shown(self) -> dict[str, float]:
        """The figures of a step that people watch."""
        return {name: getattr(self, name) for name in ("loss", "accuracy", "margin", "kl")}

    def named(self, prefix: str) -> dict[str, float]:
        """All figures under names that start with ``prefix``, for a manifest."""
        return {f"{prefix}_{name}": getattr(self, name) for name in DpoFigures.__slots__}


DpoProgress: TypeAlias = Progress[DpoFigures]
DpoControl: TypeAlias = RunControl[DpoProgress, PolicyOutcome]


def encode_pairs(encoder: Encoder, pairs: Sequence[Pair]) -> PolicyPairs:
    """Tokenise pairs. Over-length pairs are dropped, not truncated; pairs of the same texts become one."""
    weights: dict[tuple[Prompt, str, str], float] = {}
    strengths: dict[tuple[Prompt, str, str], float] = {}
    identical = 0
    for pair in pairs:
        if pair.chosen == pair.rejected:
            identical += 1
            continue
        key = (pair.prompt, pair.chosen, pair.rejected)
        weights[key] = weights.get(key, 0.0) + pair.weight
        strengths[key] = strengths.get(key, 0.0) + pair.weight * pair.margin
    items = [(prompt, text) for prompt, *texts in weights for text in texts]
    encoded = encode_completions(encoder, items)
    found = [
        PolicyPair(chosen, rejected, weight, strengths[key] / weight if weight else 0.0)
        for chosen, rejected, (key, weight) in zip(encoded[::2], encoded[1::2], weights.items(), strict=True)
        if chosen is not None and rejected is not None
    ]
    merged = len(pairs) - identical - len(weights)
    return PolicyPairs(tuple(found), merged, identical, len(weights) - len(found))


def train_policy(
    model: Any,
    encoder: Encoder,
    train: Sequence[Pair],
    heldout: Sequence[Pair],
    settings: PairSettings,
    control: DpoControl = NO_CONTROL,
    *,
    seed: int | None = None,
    reference: Reference | None = None,
) -> PolicyOutcome:
    """Train ``model`` in place.

    The reference's log-probabilities are computed once, before the first step. With the same arguments and a checkpoint
    in the control's directory, the run goes on from it; the weights are then those of an uninterrupted run, bit for bit
    on one kind of CPU and number of threads. If torch.distributed is initialised, every process makes this call and
    learns from its share of each step; the first process's checkpoint counts.

    Args:
        model: A Hugging Face causal LM.
        encoder: The model's tokenizer and text layout.
        train: Pairs to learn from.
        heldout: Pairs to measure on after the last step; may be empty.
        settings: The settings of the optimizer and of the loss, which is the one that they are of.
        control: Checkpoint directory and callbacks.
        seed: The seed of the order of the pairs; None: that of DPO's settings, else 0.
        reference: The frozen policy of the loss; None: the model as it comes.

    Returns:
        The steps taken and the figures for the manifest.

    Raises:
        NothingToLearnFrom: If no pair is left to train on.
        TrainingStopped: If the control asked to stop.
        NonFiniteGradients: If a step's gradients are not finite.
    """
    encoded = encode_pairs(encoder, train)
    if not encoded.pairs:
        raise NothingToLearnFrom(
            f"there is no pair to train on: of {len(train)}, {encoded.over_length} are longer than "
            f"{encoder.max_length} tokens or have no form in the model's text format, and {encoded.identical} compare "
            "equal texts"
        )
    measured = encode_pairs(encoder, heldout).pairs
    if seed is None:
        seed = settings.seed if isinstance(settings, DpoSettings) else 0
    return PairRun(model, encoder, encoded, measured, settings, control, seed, reference).to_the_end()


class PairRun:
    """One run: its pairs, and their log-probabilities under the reference."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        encoded: PolicyPairs,
        heldout: Sequence[PolicyPair],
        settings: PairSettings,
        control: DpoControl,
        seed: int,
        reference: Reference | None,
    ) -> None:
        self.encoded, self.pairs, self.heldout, self.settings = encoded, encoded.pairs, heldout, settings
        self.objective, self.seed = objective_of(settings), seed
        weights = torch.tensor([pair.weight for pair in self.pairs])
        # The mean is 1 over all pairs, not over those of a step: a step of light pairs alone would make them heavy.
        self.weights = weights / weights.mean()
        lengths = [pair.longest for pair in self.pairs]
        plan = [
            step
            for epoch in range(settings.epochs)
            for step in plan_batches(lengths, settings.batch_pairs, seed, epoch)
        ]
        about = (
            type(settings).__name__,
            settings.model_dump(mode="json"),
            seed,
            reference and reference.digest,
            *self.pairs,
        )
        self.run = OfflineRun(model, encoder.format.pad, plan, settings, about, control)
        frozen = None if reference is None else reference.beside(model)
        self.reference = self._logprobs(self.pairs, frozen)
        self.heldout_reference = self._logprobs(heldout, frozen)

    def to_the_end(self) -> PolicyOutcome:
        """Take the remaining steps, measure, and let the caller save."""
        self.run.take_steps(self._learn)
        figures = {
            "train_pairs": float(len(self.pairs)),
            "train_pairs_merged": float(self.encoded.merged),
            "train_pairs_identical": float(self.encoded.identical),
            "train_pairs_over_length": float(self.encoded.over_length),
        }
        if self.heldout:
            seen = sample_to_compare(len(self.pairs), len(self.heldout), self.seed)
            figures |= self._measured([self.pairs[i] for i in seen], self.reference[seen]).named("train")
            figures |= self._measured(self.heldout, self.heldout_reference).named("heldout")
            figures["heldout_pairs"] = float(len(self.heldout))
        return self.run.end(figures)

    def _learn(self, indices: Sequence[int]) -> DpoFigures:
        """Take one optimizer step. The figures returned are from before it."""
        mine = self.run.world.mine(indices)
        policy = torch.zeros(len(mine), 2)

        def losses() -> Iterator[Tensor]:
            # The two sequences of a pair stay in one forward pass.
            groups = by_length([2 * self.pairs[i].longest for i in mine], self.settings.micro_batch_tokens)
            for group in in_step(self.run.model, groups):
                places = [mine[g] for g in group]
                pairs = [self.pairs[i] for i in places]
                logprobs, _ = token_logprobs(self.run.model, [row for pair in pairs for row in pair.rows], self.run.pad)
                sums = logprobs.sum(-1).view(-1, 2)
                reference = self.reference[places].to(sums.device)
                weight = self.weights[places].to(sums.device)
                policy[group] = sums.detach().cpu()
                yield (self._losses(sums, reference, pairs) * weight).sum() / len(indices)

        self.run.descend(losses())
        policy = self.run.world.gather_rows(policy, len(indices))
        return self._figures(policy, self.reference[list(indices)], [self.pairs[i] for i in indices])

    def _losses(self, policy: Tensor, reference: Tensor, pairs: Sequence[PolicyPair]) -> Tensor:
        """policy, reference: (pairs, 2), summed log-probabilities of chosen and rejected. Returns (pairs,)."""
        strength = torch.tensor([pair.strength for pair in pairs], device=policy.device)
        return self.objective.losses(policy, reference, _tokens(pairs, policy.device), strength)

    def _figures(self, policy: Tensor, reference: Tensor, pairs: Sequence[PolicyPair]) -> DpoFigures:
        ratio = policy - reference
        rewards = self.objective.rewards(policy, reference, _tokens(pairs, policy.device))
        margins = rewards[:, 0] - rewards[:, 1]
        weight = torch.tensor([pair.weight for pair in pairs])
        loss = (self._losses(policy, reference, pairs) * weight).sum() / weight.sum()
        # Equal rewards, which all pairs have before the first step, are right half the time.
        accuracy = ((margins > 0).float() + 0.5 * (margins == 0).float()).mean()
        return DpoFigures(
            loss.item(),
            accuracy.item(),
            margins.mean().item(),
            ratio[:, 0].mean().item(),
            ratio[:, 1].mean().item(),
            kl_estimate(reference, policy, "k3").mean().item(),
        )

    def _measured(self, pairs: Sequence[PolicyPair], reference: Tensor) -> DpoFigures:
        return self._figures(self._logprobs(pairs), reference, pairs)

    def _logprobs(self, pairs: Sequence[PolicyPair], model: Any | None = None) -> Tensor:
        """(pairs, 2): log-probabilities of chosen and rejected under ``model``; None: the one that learns, as it is."""
        return self.run.logprobs([pair.rows for pair in pairs], 2, model)


def _tokens(pairs: Sequence[PolicyPair], device: torch.device) -> Tensor:
    """(pairs, 2): numbers of tokens of chosen and rejected response."""
    return torch.tensor([[pair.chosen.tokens, pair.rejected.tokens] for pair in pairs], device=device)
