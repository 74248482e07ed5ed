"""Trains a policy with KTO on responses that were judged one by one: thumbs, and ratings by their half of the scale."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.batches import by_length
from rewardloop_trainer.data.completions import Completion, encode_completions, token_logprobs
from rewardloop_trainer.data.preferences import Labelled, Prompt
from rewardloop_trainer.learning.offline_run import OfflineRun, PolicyOutcome, Progress, sample_to_compare
from rewardloop_trainer.policy.losses import kto
from rewardloop_trainer.policy.settings import KtoSettings

# Responses tried for a prompt before it goes without a mismatched one.
_TRIES = 16


@dataclass(frozen=True, slots=True)
class Thumb:
    """A judged response as a sequence. ``weight`` scales its share of the loss."""

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
    """``merged``: those that repeat another's text and verdict, whose weight it took. ``over_length``: dropped."""

    thumbs: tuple[Thumb, ...]
    merged: int
    over_length: int


@dataclass(frozen=True, slots=True)
class KtoFigures:
    """Of a set of thumbs. ``accuracy``: the share whose log(pi / ref) is on the right side of z: above it where
    wanted, below where not; half where equal. ``wanted_log_ratio``, ``unwanted_log_ratio``: means, in nats, None where
    there is none. ``kl``: z, KTO's reference point, in nats."""

    loss: float
    accuracy: float
    wanted_log_ratio: float | None
    unwanted_log_ratio: float | None
    kl: float

    def named(self, prefix: str = "") -> dict[str, float]:
        """For a manifest."""
        found = {f"{prefix}{name}": getattr(self, name) for name in KtoFigures.__slots__}
        return {name: value for name, value in found.items() if value is not None}


KtoProgress: TypeAlias = Progress[KtoFigures]


def encode_thumbs(encoder: Encoder, thumbs: Sequence[Labelled]) -> Thumbs:
    """Tokenise; wanted is what is above the middle. Over-length ones are dropped, not truncated; alike ones become one.

    A text that one person wanted and another did not is kept as both.
    """
    weights: dict[tuple[Prompt, str, bool], float] = {}
    for thumb in thumbs:
        key = (thumb.prompt, thumb.response, thumb.label > 0.5)
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
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[KtoProgress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    save: Callable[[PolicyOutcome], None] = lambda _: None,
    *,
    seed: int = 0,
) -> PolicyOutcome:
    """Train ``model`` (a Hugging Face causal LM) in place; as it comes, it is the reference.

    Wanted and unwanted thumbs count alike as a whole, however many there are of each (`kto.balanced_weights`). Goes on
    from a checkpoint, shares the work among processes and saves as `policy_train.train_policy` does. Raises ValueError
    without a thumb to train on, and `TrainingStopped` when asked to stop.
    """
    encoded = encode_thumbs(encoder, thumbs)
    if not encoded.thumbs:
        raise ValueError("there is no thumb to train on")
    run = _Run(model, encoder, encoded, encode_thumbs(encoder, heldout).thumbs, settings, checkpoint_dir, seed)
    return run.to_the_end(on_progress, should_stop, save)


class _Side:
    """The thumbs to train on, or the held-out ones, with what is fixed about them while the policy moves."""

    def __init__(self, thumbs: Sequence[Thumb], max_length: int, seed: int) -> None:
        self.thumbs = thumbs
        self.is_wanted = torch.tensor([thumb.is_wanted for thumb in thumbs], dtype=torch.bool)
        weight = torch.tensor([thumb.weight for thumb in thumbs])
        weight = weight * kto.balanced_weights(self.is_wanted, weight)
        # Mean 1 over all of them, and not over each step's: a step with few of one kind would undo the balance.
        self.weight = weight / weight.mean()
        self.mismatched = _mismatched(thumbs, max_length, seed)
        self.reference = self.mismatched_reference = torch.zeros(0)

    def measure(self, run: OfflineRun) -> None:
        """Before the first step: the model is still the reference."""
        every = range(len(self.thumbs))
        self.reference = run.logprobs([(thumb.said,) for thumb in self.thumbs], 1).squeeze(1)
        self.mismatched_reference = torch.zeros(len(self.thumbs))
        if has_one := [i for i in every if self.mismatched[i]]:
            self.mismatched_reference[has_one] = self._mismatched_logprobs(run, has_one)

    def z(self, run: OfflineRun, places: Sequence[int]) -> Tensor:
        """The reference point at these thumbs; 0 where none has a mismatched response."""
        has_one = [i for i in places if self.mismatched[i]]
        if not has_one:
            return torch.zeros(())
        return kto.reference_point(self._mismatched_logprobs(run, has_one) - self.mismatched_reference[has_one])

    def figures(self, places: Sequence[int], log_ratio: Tensor, z: Tensor, beta: float) -> KtoFigures:
        """log_ratio: (places,)."""
        wanted, weight = self.is_wanted[places], self.weight[places]
        loss = (weight * kto.kto(log_ratio, wanted, z, beta)).mean()
        above = torch.where(wanted, log_ratio - z, z - log_ratio)
        accuracy = ((above > 0).float() + 0.5 * (above == 0).float()).mean()
        return KtoFigures(loss.item(), accuracy.item(), _mean(log_ratio[wanted]), _mean(log_ratio[~wanted]), z.item())

    def _mismatched_logprobs(self, run: OfflineRun, places: Sequence[int]) -> Tensor:
        rows = [row for i in places if (row := self.mismatched[i])]
        return run.logprobs([(row,) for row in rows], 1).squeeze(1)


class _Run:
    """One training run: its thumbs, and what the reference says of them."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        encoded: Thumbs,
        heldout: Sequence[Thumb],
        settings: KtoSettings,
        checkpoint_dir: Path | None,
        seed: int,
    ) -> None:
        self.encoded, self.settings, self.seed = encoded, settings, seed
        self.train = _Side(encoded.thumbs, encoder.max_length, seed)
        self.heldout = _Side(heldout, encoder.max_length, seed)
        plan = _plan(len(encoded.thumbs), settings, seed)
        about = (settings, seed, *encoded.thumbs)
        self.run = OfflineRun(model, encoder.format.pad, plan, settings, about, checkpoint_dir)
        for side in (self.train, self.heldout):
            side.measure(self.run)

    def to_the_end(
        self,
        on_progress: Callable[[KtoProgress], None],
        should_stop: Callable[[], bool],
        save: Callable[[PolicyOutcome], None],
    ) -> PolicyOutcome:
        self.run.take_steps(self._learn, on_progress, should_stop)
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
        return self.run.end(figures, save)

    def _learn(self, indices: Sequence[int]) -> KtoFigures:
        """One optimizer step; its figures are from before it."""
        train, beta = self.train, self.settings.beta
        z = train.z(self.run, indices)
        mine = self.run.world.mine(indices)
        policy = torch.zeros(len(mine))

        def losses() -> Iterator[Tensor]:
            lengths = [len(train.thumbs[i].said.ids) for i in mine]
            for group in by_length(lengths, self.settings.micro_batch_tokens):
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
    """Shuffled and not by length: where wanted answers are longer, a step would hold one kind alone."""
    steps: list[list[int]] = []
    for epoch in range(settings.epochs):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
        steps += [order[i : i + settings.batch_thumbs] for i in range(0, count, settings.batch_thumbs)]
    return steps


def _mismatched(thumbs: Sequence[Thumb], max_length: int, seed: int) -> list[Completion | None]:
    """Each thumb's prompt with a response to another prompt, drawn at random; None where none was found that fits."""
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
