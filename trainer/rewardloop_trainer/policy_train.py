"""Trains a policy on preference pairs with DPO; a killed run goes on from its checkpoint to the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer import checkpoint, dpo
from rewardloop_trainer.completions import (
    Completion,
    by_length,
    encode_completions,
    plan_batches,
    rate_scale,
    sequence_logprobs,
    token_logprobs,
)
from rewardloop_trainer.online.world import World
from rewardloop_trainer.policy_settings import DpoSettings
from rewardloop_trainer.preferences import Pair, Prompt

log = structlog.get_logger()


class TrainingStopped(Exception):
    """``should_stop`` said so. The checkpoint is written: the same call goes on from here."""


@dataclass(frozen=True, slots=True)
class PolicyPair:
    """A pair as sequences. ``weight`` scales its share of the loss."""

    chosen: Completion
    rejected: Completion
    weight: float

    @property
    def longest(self) -> int:
        return max(len(self.chosen.ids), len(self.rejected.ids))


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

    def named(self, prefix: str) -> dict[str, float]:
        """For a manifest."""
        return {f"{prefix}_{name}": getattr(self, name) for name in Figures.__slots__}


@dataclass(frozen=True, slots=True)
class PolicyProgress:
    """After a step."""

    step: int
    steps: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class PolicyOutcome:
    """``figures`` are for the manifest."""

    steps: int
    figures: Mapping[str, float]


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
    """One training run: its model, optimizer, reference and position."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        encoded: PolicyPairs,
        heldout: Sequence[PolicyPair],
        settings: DpoSettings,
        checkpoint_dir: Path | None,
    ) -> None:
        self.world = World()
        self.model, self.settings, self.checkpoint_dir = model, settings, checkpoint_dir
        self.encoded, self.pairs, self.heldout = encoded, encoded.pairs, heldout
        self.pad = encoder.format.pad
        self.model.eval()  # no dropout in policy and reference
        self.fingerprint = self._fingerprint()
        self.reference = self._logprobs(self.pairs)
        self.heldout_reference = self._logprobs(heldout)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
        )
        lengths = [pair.longest for pair in self.pairs]
        self.plan = [
            step
            for epoch in range(settings.epochs)
            for step in plan_batches(lengths, settings.batch_pairs, settings.seed, epoch)
        ]
        if settings.max_steps:
            self.plan = self.plan[: settings.max_steps]
        self.step = 0
        self.last: Figures | None = None

    def to_the_end(
        self,
        on_progress: Callable[[PolicyProgress], None],
        should_stop: Callable[[], bool],
        save: Callable[[PolicyOutcome], None],
    ) -> PolicyOutcome:
        self._resume()
        while self.step < len(self.plan):
            if self.world.largest(float(should_stop())):
                self._checkpoint()
                raise TrainingStopped(f"stopped after step {self.step} of {len(self.plan)}")
            self.last = self._learn(self.plan[self.step])
            self.step += 1
            every = self.settings.checkpoint_every_steps
            if every and self.step % every == 0:
                self._checkpoint()
            on_progress(PolicyProgress(self.step, len(self.plan), self.last))
        figures = {
            "train_steps": float(self.step),
            "train_pairs": float(len(self.pairs)),
            "train_pairs_merged": float(self.encoded.merged),
            "train_pairs_identical": float(self.encoded.identical),
            "train_pairs_over_length": float(self.encoded.over_length),
            **self._measured(self.pairs, self.reference).named("train"),
        }
        if self.heldout:
            figures |= self._measured(self.heldout, self.heldout_reference).named("heldout")
            figures["heldout_pairs"] = float(len(self.heldout))
        outcome = PolicyOutcome(self.step, figures)
        if self.world.is_first:
            save(outcome)
            if self.checkpoint_dir is not None:
                checkpoint.clear(self.checkpoint_dir)
        self.world.wait()
        return outcome

    def _learn(self, indices: Sequence[int]) -> Figures:
        """One optimizer step; its figures are from before it."""
        scale = rate_scale(self.step, len(self.plan), self.settings.warmup_share)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.settings.learning_rate * scale
        self.optimizer.zero_grad(set_to_none=True)
        total = sum(self.pairs[i].weight for i in indices)
        mine = self.world.mine(indices)
        policy = torch.zeros(len(mine), 2)
        # Two rows a pair, kept in one forward pass.
        for group in by_length([2 * self.pairs[i].longest for i in mine], self.settings.micro_batch_tokens):
            places = [mine[g] for g in group]
            pairs = [self.pairs[i] for i in places]
            logprobs, _ = token_logprobs(self.model, _rows(pairs), self.pad)
            sums = logprobs.sum(-1).view(-1, 2)
            reference = self.reference[places].to(sums.device)
            weight = torch.tensor([pair.weight for pair in pairs], device=sums.device)
            loss = (self._losses(sums, reference, pairs) * weight).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            policy[group] = sums.detach().cpu()
        self.world.sum_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm, error_if_nonfinite=True)
        self.optimizer.step()
        policy = self.world.gather_rows(policy, len(indices))
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
        budget = 2 * self.settings.micro_batch_tokens
        mine = sequence_logprobs(self.model, _rows(self.world.mine(pairs)), self.pad, budget).view(-1, 2)
        return self.world.gather_rows(mine, len(pairs))

    def _checkpoint(self) -> None:
        if self.checkpoint_dir is None or not self.world.is_first:
            return
        tensors = checkpoint.training_tensors(self.model, self.optimizer)
        texts = {"fingerprint": self.fingerprint}
        checkpoint.save(self.checkpoint_dir, checkpoint.Checkpoint(self.step, tensors, {}, texts))

    def _resume(self) -> None:
        self.world.check_alike(self.fingerprint)
        if self.checkpoint_dir is None:
            return
        try:
            found = self.world.newest_checkpoint(self.checkpoint_dir)
            if found is None:
                return
            if found.texts["fingerprint"] != self.fingerprint:
                log.warning("a checkpoint of another training run is ignored", directory=str(self.checkpoint_dir))
                return
            checkpoint.restore_training(self.model, self.optimizer, found.tensors)
        except checkpoint.CorruptCheckpoint as error:
            log.warning("a checkpoint that cannot be used is ignored", reason=str(error))
            return
        self.step = found.step
        log.info("training goes on from a checkpoint", step=self.step, steps=len(self.plan))

    def _fingerprint(self) -> str:
        """Names the run: settings, pairs in their order, and the weights it starts from."""
        digest = hashlib.sha256(self.settings.model_dump_json(include=set(DpoSettings.model_fields)).encode())
        for pair in self.pairs:
            digest.update(repr((pair.chosen, pair.rejected, pair.weight)).encode())
        for name, parameter in self.model.named_parameters():
            values = parameter.detach().double()
            digest.update(f"{name}{tuple(parameter.shape)}{values.sum().item()}{values.norm().item()}".encode())
        return digest.hexdigest()


def _rows(pairs: Sequence[PolicyPair]) -> list[Completion]:
    return [row for pair in pairs for row in (pair.chosen, pair.rejected)]
