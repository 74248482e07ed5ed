"""Training a policy with KTO on single judged responses: thumbs, and ratings by their half of the scale."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.completions import Completion, encode_completions, token_logprobs
from rewardloop_trainer.data.computing.shards import in_step
from rewardloop_trainer.data.preferences import Labelled, Prompt
from rewardloop_trainer.data.token_batches import by_length
from rewardloop_trainer.learning.offline_run import OfflineRun, PolicyOutcome, Progress, sample_to_compare
from rewardloop_trainer.learning.run_control import NO_CONTROL, NothingToLearnFrom, RunControl
from rewardloop_trainer.policy.losses import kto
from rewardloop_trainer.policy.offline_settings import KtoSettings
from rewardloop_trainer.policy.reference import Reference

# Responses that are tried for a prompt before it goes without a mismatched one.
_TRIES = 16


@dataclass(frozen=True, slots=True)
class Thumb:
    """A judged response as a token sequence. ``weight`` scales its share of the loss."""

    said: Completion
    is_wanted: bool
    weight: float

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.said.ids[: self.said.start]

    @property
    def response_ids(self) -> tuple[int, ...]:
        return self.said.ids[self.said.start :]


@dataclass(frozen=True, slots=True)
class Thumbs:
    """Encoded thumbs, and what became of the others.

    Attributes:
        thumbs: The thumbs to train on.
        merged: Number of thumbs with another's text and verdict; their weight was added to that one.
        over_length: Number of thumbs dropped because the sequence is longer than the encoder's maximum.
    """

    thumbs: tuple[Thumb, ...]
    merged: int
    over_length: int


@dataclass(frozen=True, slots=True)
class KtoFigures:
    """Figures of a set of thumbs; r is log(pi / ref) of a response, in nats.

    Attributes:
        loss: Weighted mean of the loss.
        accuracy: Share of thumbs with r above z if wanted, below z if unwanted; r = z counts half.
        wanted_log_ratio: Mean r of the wanted responses; None without any.
        unwanted_log_ratio: Mean r of the unwanted responses; None without any.
        kl: z, KTO's reference point, in nats.
    """

    loss: float
    accuracy: float
    wanted_log_ratio: float | None
    unwanted_log_ratio: float | None
    kl: float

    def named(self, prefix: str = "") -> dict[str, float]:
        """The figures that there are, under names that start with ``prefix``, for a manifest."""
        found = {f"{prefix}{name}": getattr(self, name) for name in KtoFigures.__slots__}
        return {name: value for name, value in found.items() if value is not None}


KtoProgress: TypeAlias = Progress[KtoFigures]
KtoControl: TypeAlias = RunControl[KtoProgress, PolicyOutcome]


def encode_thumbs(encoder: Encoder, thumbs: Sequence[Labelled]) -> Thumbs:
    """Tokenise thumbs; a label above the middle of the scale means wanted.

    Over-length thumbs are dropped, not truncated. Thumbs with the same text and verdict become one; a text that one
    person wanted and another did not stays as two.
    """
    weights: dict[tuple[Prompt, str, bool], float] = {}
    for thumb in thumbs:
        key = (thumb.prompt, thumb.response, thumb.is_wanted)
        weights[key] = weights.get(key, 0.0) + thumb.weight
    encoded = encode_completions(encoder, [(prompt, text) for prompt, text, _ in weights])
    found = [
        Thumb(said, is_wanted, weight)
        for said, ((_, _, is_wanted), weight) in zip(encoded, weights.items(), strict=True)
        if said is not None
    ]
    return Thumbs(tuple(found), len(thumbs) - len(weights), len(weights) - len(found))


def train_kto(
    model: Any,
    encoder: Encoder,
    thumbs: Sequence[Labelled],
    heldout: Sequence[Labelled],
    settings: KtoSettings,
    control: KtoControl = NO_CONTROL,
    *,
    seed: int = 0,
    reference: Reference | None = None,
) -> PolicyOutcome:
    """Train ``model`` in place.

    Wanted and unwanted thumbs have the same total weight, however many there are of each (`kto.balanced_weights`).
    Checkpoints and several processes work as in `dpo_train.train_policy`.

    Args:
        model: A Hugging Face causal LM.
        encoder: The model's tokenizer and text layout.
        thumbs: Judged responses to learn from.
        heldout: Judged responses to measure on after the last step; may be empty.
        settings: The settings of the loss and the optimizer.
        control: Checkpoint directory and callbacks.
        seed: The seed of the order of the thumbs and of their mismatched responses.
        reference: The frozen policy of the loss; None: the model as it comes.

    Returns:
        The steps taken and the figures for the manifest.

    Raises:
        NothingToLearnFrom: If no thumb is left to train on.
        TrainingStopped: If the control asked to stop.
        NonFiniteGradients: If a step's gradients are not finite.
    """
    encoded = encode_thumbs(encoder, thumbs)
    if not encoded.thumbs:
        raise NothingToLearnFrom(
            f"there is no thumb to train on: of {len(thumbs)}, {encoded.over_length} are longer than "
            f"{encoder.max_length} tokens or have no form in the model's text format"
        )
    measured = encode_thumbs(encoder, heldout).thumbs
    return KtoRun(model, encoder, encoded, measured, settings, control, seed, reference).to_the_end()


class _Side:
    """The thumbs to train on, or the held-out ones, with what does not change while the policy learns."""

    def __init__(self, thumbs: Sequence[Thumb], max_length: int, seed: int) -> None:
        self.thumbs = thumbs
        self.is_wanted = torch.tensor([thumb.is_wanted for thumb in thumbs], dtype=torch.bool)
        weight = torch.tensor([thumb.weight for thumb in thumbs])
        weight = weight * kto.balanced_weights(self.is_wanted, weight)
        # The mean is 1 over all thumbs, not over those of a step: a step with few of one kind would undo the balance.
        self.weight = weight / weight.mean()
        self.mismatched = _mismatched(thumbs, max_length, seed)
        self.reference = self.mismatched_reference = torch.zeros(0)

    def measure(self, run: OfflineRun[KtoFigures], reference: Any | None) -> None:
        """Compute the reference's log-probabilities; None: those of the model, before its first step."""
        every = range(len(self.thumbs))
        self.reference = run.logprobs([(thumb.said,) for thumb in self.thumbs], 1, reference).squeeze(1)
        self.mismatched_reference = torch.zeros(len(self.thumbs))
        if has_one := [i for i in every if self.mismatched[i]]:
            self.mismatched_reference[has_one] = self._mismatched_logprobs(run, has_one, reference)

    def z(self, run: OfflineRun[KtoFigures], places: Sequence[int]) -> Tensor:
        """The reference point of these thumbs, (), in nats; 0 if none of them has a mismatched response."""
        has_one = [i for i in places if self.mismatched[i]]
        if not has_one:
            return torch.zeros(())
        return kto.reference_point(self._mismatched_logprobs(run, has_one) - self.mismatched_reference[has_one])

    def figures(self, places: Sequence[int], log_ratio: Tensor, z: Tensor, beta: float) -> KtoFigures:
        """The figures of the thumbs at ``places``; log_ratio: (places,), in nats; z: ()."""
        wanted, weight = self.is_wanted[places], self.weight[places]
        loss = (weight * kto.kto(log_ratio, wanted, z, beta)).mean()
        above = torch.where(wanted, log_ratio - z, z - log_ratio)
        accuracy = ((above > 0).float() + 0.5 * (above == 0).float()).mean()
        return KtoFigures(loss.item(), accuracy.item(), _mean(log_ratio[wanted]), _mean(log_ratio[~wanted]), z.item())

    def _mismatched_logprobs(
        self, run: OfflineRun[KtoFigures], places: Sequence[int], model: Any | None = None
    ) -> Tensor:
        rows = [row for i in places if (row := self.mismatched[i])]
        return run.logprobs([(row,) for row in rows], 1, model).squeeze(1)


class KtoRun:
    """One run of KTO: its thumbs, and their log-probabilities under the reference."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        encoded: Thumbs,
        heldout: Sequence[Thumb],
        settings: KtoSettings,
        control: KtoControl,
        seed: int,
        reference: Reference | None,
    ) -> None:
        self.encoded, self.settings, self.seed = encoded, settings, seed
        self.train = _Side(encoded.thumbs, encoder.max_length, seed)
        self.heldout = _Side(heldout, encoder.max_length, seed)
        plan = _plan(len(encoded.thumbs), settings, seed)
        about = (settings, seed, reference and reference.digest, *encoded.thumbs)
        self.run = OfflineRun(model, encoder.format.pad, plan, settings, about, control)
        frozen = None if reference is None else reference.beside(model)
        for side in (self.train, self.heldout):
            side.measure(self.run, frozen)

    def to_the_end(self) -> PolicyOutcome:
        """Take the remaining steps, measure, and let the caller save."""
        self.run.take_steps(self._learn)
        figures = {
            "train_thumbs": float(len(self.train.thumbs)),
            "train_thumbs_wanted": float(self.train.is_wanted.sum()),
            "train_thumbs_merged": float(self.encoded.merged),
            "train_thumbs_over_length": float(self.encoded.over_length),
        }
        if heldout := len(self.heldout.thumbs):
            seen = sample_to_compare(len(self.train.thumbs), heldout, self.seed)
            figures |= self._measured(self.train, seen, "train_")
            figures |= self._measured(self.heldout, range(heldout), "heldout_")
            figures["heldout_thumbs"] = float(heldout)
        return self.run.end(figures)

    def _learn(self, indices: Sequence[int]) -> KtoFigures:
        """Take one optimizer step. The figures returned are from before it."""
        train, beta = self.train, self.settings.beta
        z = train.z(self.run, indices)
        mine = self.run.world.mine(indices)
        policy = torch.zeros(len(mine))

        def losses() -> Iterator[Tensor]:
            lengths = [len(train.thumbs[i].said.ids) for i in mine]
            for group in in_step(self.run.model, by_length(lengths, self.settings.micro_batch_tokens)):
                places = [mine[g] for g in group]
                logprobs, _ = token_logprobs(self.run.model, [train.thumbs[i].said for i in places], self.run.pad)
                sums = logprobs.sum(-1)
                policy[group] = sums.detach().cpu()
                reference, is_wanted, weight = (
                    of_all[places].to(sums.device) for of_all in (train.reference, train.is_wanted, train.weight)
                )
                losses = kto.kto(sums - reference, is_wanted, z.to(sums.device), beta)
                yield (weight * losses).sum() / len(indices)

        self.run.descend(losses())
        log_ratio = self.run.world.gather_rows(policy, len(indices)) - train.reference[indices]
        return train.figures(indices, log_ratio, z, beta)

    def _measured(self, side: _Side, places: Sequence[int], prefix: str) -> Mapping[str, float]:
        places = list(places)
        log_ratio = self.run.logprobs([(side.thumbs[i].said,) for i in places], 1).squeeze(1) - side.reference[places]
        return side.figures(places, log_ratio, side.z(self.run, places), self.settings.beta).named(prefix)


def _plan(count: int, settings: KtoSettings, seed: int) -> list[list[int]]:
    """The indices of each step's thumbs, shuffled.

    They are not sorted by length: if wanted responses were longer, a step would hold one kind alone.
    """
    steps: list[list[int]] = []
    for epoch in range(settings.epochs):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
        steps += [order[i : i + settings.batch_thumbs] for i in range(0, count, settings.batch_thumbs)]
    return steps


def _mismatched(thumbs: Sequence[Thumb], max_length: int, seed: int) -> list[Completion | None]:
    """Each thumb's prompt joined with a random response to another prompt; None if no response was found that fits."""
    order = list(range(len(thumbs)))
    random.Random(seed).shuffle(order)
    found: list[Completion | None] = [None] * len(thumbs)
    for place, i in enumerate(order):
        prompt = thumbs[i].prompt_ids
        others = (thumbs[order[(place + k) % len(order)]] for k in range(1, len(order)))
        for other in islice(others, _TRIES):
            ids = (*prompt, *other.response_ids)
            if other.prompt_ids != prompt and len(ids) <= max_length:
                found[i] = Completion(ids, len(prompt))
                break
    return found


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None
