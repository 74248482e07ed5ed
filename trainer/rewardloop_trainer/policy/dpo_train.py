"""Trains a policy on preference pairs with DPO; a killed run goes on from its checkpoint to the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.batches import by_length, plan_batches
from rewardloop_trainer.data.completions import Completion, encode_completions, token_logprobs
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.learning.offline_run import OfflineRun, PolicyOutcome, Progress, sample_to_compare
from rewardloop_trainer.policy.losses import dpo
from rewardloop_trainer.policy.settings import DpoSettings


@dataclass(frozen=True, slots=True)
class PolicyPair:
    """A pair as sequences. ``weight`` scales its share of the loss."""

    chosen: Completion
    rejected: Completion
    weight: float

    @property
    def rows(self) -> tuple[Completion, Completion]:
        return self.chosen, self.rejected

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class PolicyPairs:
    """``merged``: pairs that repeat another's texts, whose weight it took. ``identical``, ``over_length``: dropped."""

    pairs: tuple[PolicyPair, ...]
    merged: int
    identical: int
    over_length: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over a set of pairs, all in nats but ``accuracy``.

    ``accuracy``: share of pairs whose chosen response has the higher implicit reward, beta * log(pi / ref).
    ``margin``: implicit reward of chosen less that of rejected. ``chosen_log_ratio``, ``rejected_log_ratio``:
    log(pi / ref) of a response. ``kl``: KL(reference || policy) a sequence, as if the reference had said the responses.
    """

    loss: float
    accuracy: float
    margin: float
    chosen_log_ratio: float
    rejected_log_ratio: float
    kl: float

    def shown(self) -> dict[str, float]:
        """Of a step, for people to watch."""
        return {name: getattr(self, name) for name in ("loss", "accuracy", "margin", "kl")}

    def named(self, prefix: str) -> dict[str, float]:
        """For a manifest."""
        return {f"{prefix}_{name}": getattr(self, name) for name in Figures.__slots__}


PolicyProgress: TypeAlias = Progress[Figures]


def encode_pairs(encoder: Encoder, pairs: Sequence[Pair]) -> PolicyPairs:
    """Tokenise pairs. Over-length ones are dropped, not truncated; pairs of the same texts become one."""
    weights: dict[tuple[Prompt, str, str], float] = {}
    identical = 0
    for pair in pairs:
        if pair.chosen == pair.rejected:
            identical += 1
            continue
        key = (pair.prompt, pair.chosen, pair.rejected)
        weights[key] = weights.get(key, 0.0) + pair.weight
    items = [(prompt, text) for prompt, *texts in weights for text in texts]
    encoded = encode_completions(encoder, items)
    found = [
        PolicyPair(chosen, rejected, weight)
        for chosen, rejected, weight in zip(encoded[::2], encoded[1::2], weights.values(), strict=True)
        if chosen is not None and rejected is not None
    ]
    merged = len(pairs) - identical - len(weights)
    return PolicyPairs(tuple(found), merged, identical, len(weights) - len(found))


def train_policy(
    model: Any,
    encoder: Encoder,
    train: Sequence[Pair],
    heldout: Sequence[Pair],
    settings: DpoSettings,
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[PolicyProgress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    save: Callable[[PolicyOutcome], None] = lambda _: None,
) -> PolicyOutcome:
    """Train ``model`` (a Hugging Face causal LM) in place; as it comes, it is the reference.

    The reference's log-probabilities are computed once, before the first step. With the same arguments and a checkpoint
    in ``checkpoint_dir``, goes on from it; the weights are then those of an uninterrupted run, bit for bit on one kind
    of CPU and number of threads. A checkpoint of another run, or one that cannot be read, is logged and ignored. The
    directory is emptied at the end. Where torch.distributed is initialised, every process makes this call and learns
    from its share of each step; the first one's checkpoint counts. ``save`` is called before the directory is emptied,
    in the first process only. Raises ValueError without training pairs, `TrainingStopped` when asked to stop.
    """
    encoded = encode_pairs(encoder, train)
    if not encoded.pairs:
        raise ValueError("there is no pair to train on")
    run = _Run(model, encoder, encoded, encode_pairs(encoder, heldout).pairs, settings, checkpoint_dir)
    return run.to_the_end(on_progress, should_stop, save)


class _Run:
    """One training run: its pairs, and what the reference says of them."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        encoded: PolicyPairs,
        heldout: Sequence[PolicyPair],
        settings: DpoSettings,
        checkpoint_dir: Path | None,
    ) -> None:
        self.encoded, self.pairs, self.heldout, self.settings = encoded, encoded.pairs, heldout, settings
        lengths = [pair.longest for pair in self.pairs]
        plan = [
            step
            for epoch in range(settings.epochs)
            for step in plan_batches(lengths, settings.batch_pairs, settings.seed, epoch)
        ]
        about = (settings.model_dump(mode="json", include=set(DpoSettings.model_fields)), *self.pairs)
        self.run = OfflineRun(model, encoder.format.pad, plan, settings, about, checkpoint_dir)
        self.reference = self._logprobs(self.pairs)
        self.heldout_reference = self._logprobs(heldout)

    def to_the_end(
        self,
        on_progress: Callable[[PolicyProgress], None],
        should_stop: Callable[[], bool],
        save: Callable[[PolicyOutcome], None],
    ) -> PolicyOutcome:
        self.run.take_steps(self._learn, on_progress, should_stop)
        figures = {
            "train_pairs": float(len(self.pairs)),
            "train_pairs_merged": float(self.encoded.merged),
            "train_pairs_identical": float(self.encoded.identical),
            "train_pairs_over_length": float(self.encoded.over_length),
        }
        if self.heldout:
            seen = sample_to_compare(len(self.pairs), len(self.heldout), self.settings.seed)
            figures |= self._measured([self.pairs[i] for i in seen], self.reference[seen]).named("train")
            figures |= self._measured(self.heldout, self.heldout_reference).named("heldout")
            figures["heldout_pairs"] = float(len(self.heldout))
        return self.run.end(figures, save)

    def _learn(self, indices: Sequence[int]) -> Figures:
        """One optimizer step; its figures are from before it."""
        total = sum(self.pairs[i].weight for i in indices)
        mine = self.run.world.mine(indices)
        policy = torch.zeros(len(mine), 2)

        def losses() -> Iterator[Tensor]:
            # Two rows a pair, kept in one forward pass.
            for group in by_length([2 * self.pairs[i].longest for i in mine], self.settings.micro_batch_tokens):
                places = [mine[g] for g in group]
                pairs = [self.pairs[i] for i in places]
                logprobs, _ = token_logprobs(self.run.model, [row for pair in pairs for row in pair.rows], self.run.pad)
                sums = logprobs.sum(-1).view(-1, 2)
                reference = self.reference[places].to(sums.device)
                weight = torch.tensor([pair.weight for pair in pairs], device=sums.device)
                policy[group] = sums.detach().cpu()
                yield (self._losses(sums, reference, pairs) * weight).sum() / total

        self.run.descend(losses())
        policy = self.run.world.gather_rows(policy, len(indices))
        return self._figures(policy, self.reference[list(indices)], [self.pairs[i] for i in indices])

    def _losses(self, policy: Tensor, reference: Tensor, pairs: Sequence[PolicyPair]) -> Tensor:
        """policy, reference: (pairs, 2), summed log-probabilities of chosen and rejected. Returns (pairs,)."""
        settings = self.settings
        tokens = torch.tensor([[p.chosen.tokens, p.rejected.tokens] for p in pairs], device=policy.device)
        ratio = policy - reference
        if settings.loss == "ipo" or settings.length_normalised:
            d = dpo.difference_per_token(ratio[:, 0], ratio[:, 1], tokens[:, 0], tokens[:, 1])
        else:
            d = ratio[:, 0] - ratio[:, 1]
        losses = dpo.LOSSES[settings.loss](d, settings.beta, settings.label_smoothing)
        # Iterative RPO (Pang et al. 2024), eq. 1: DPO alone may lower the chosen response's probability too.
        return losses - settings.sft_weight * policy[:, 0] / tokens[:, 0]

    def _figures(self, policy: Tensor, reference: Tensor, pairs: Sequence[PolicyPair]) -> Figures:
        ratio = policy - reference
        margins = ratio[:, 0] - ratio[:, 1]
        weight = torch.tensor([pair.weight for pair in pairs])
        loss = (self._losses(policy, reference, pairs) * weight).sum() / weight.sum()
        # Equal rewards, as before the first step, are right half the time.
        accuracy = ((margins > 0).float() + 0.5 * (margins == 0).float()).mean()
        return Figures(
            loss.item(),
            accuracy.item(),
            self.settings.beta * margins.mean().item(),
            ratio[:, 0].mean().item(),
            ratio[:, 1].mean().item(),
            dpo.k3(ratio).mean().item(),
        )

    def _measured(self, pairs: Sequence[PolicyPair], reference: Tensor) -> Figures:
        return self._figures(self._logprobs(pairs), reference, pairs)

    def _logprobs(self, pairs: Sequence[PolicyPair]) -> Tensor:
        """(pairs, 2): of chosen and rejected, under the model as it is."""
        return self.run.logprobs([pair.rows for pair in pairs], 2)
