"""Training records as token sequences, and the order and groups in which training reads them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rewardloop.formats.text import Encoded, Encoder, RefusedConversation
from rewardloop_trainer.data.computing.shards import in_step
from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList, Record, TiedPair
from rewardloop_trainer.data.token_batches import by_length
from rewardloop_trainer.reward.model import RewardModel

Kind = Literal["pair", "tie", "ranking", "label"]

# What a model reads of a sequence: ids and segment ids.
SequenceKey: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]

# Most examples of a pack that share a sequence. Larger packs would save little and leave few prompts in a step.
PACK = 4


@dataclass(frozen=True, slots=True)
class Example:
    """One record as token sequences.

    Attributes:
        kind: The kind of record.
        sequences: Chosen and rejected of a pair, both of a tie, those of a ranking with the best first, or the one of a
            label.
        weight: Scales the record's share of the loss.
        key: Identifies the signal (its event id), so that its bootstrap weights are the same in every round.
        label: The label of a label record, in [0, 1].
        shorter_won: Whether it is a pair whose chosen response has fewer characters.
        prompt: Identifies the prompt among those of the run.
        margin: How strong the preference of a pair is, from 0 (not said) to 1.
    """

    kind: Kind
    sequences: tuple[Encoded, ...]
    weight: float
    key: str
    label: float = 0.0
    shorter_won: bool = False
    prompt: str = ""
    margin: float = 0.0

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(s.ids) for s in self.sequences)


@dataclass(frozen=True, slots=True)
class Examples:
    """Encoded records; ``truncated`` of them were shortened, and ``dropped`` others left out."""

    examples: tuple[Example, ...]
    truncated: int
    dropped: int


def encode_records(
    encoder: Encoder, records: Sequence[Record], over_length: Literal["truncate", "drop"] = "truncate"
) -> Examples:
    """Tokenise records; ``over_length`` tells whether examples that are too long are shortened or dropped.

    A record for whose conversation the text format has no form is dropped.
    """
    groups = encoder.groups([(record.prompt, responses_of(record)) for record in records])
    found: list[Example] = []
    truncated = dropped = 0
    for record, group in zip(records, groups, strict=True):
        if isinstance(group, RefusedConversation):
            dropped += 1
            continue
        sequences = tuple(group)
        if any(s.truncated for s in sequences):
            if over_length == "drop":
                dropped += 1
                continue
            truncated += 1
        found.append(_example(record, sequences))
    return Examples(tuple(found), truncated, dropped)


def responses_of(record: Record) -> tuple[str, ...]:
    """The record's responses in the order of `Example.sequences`."""
    match record:
        case Pair():
            return (record.chosen, record.rejected)
        case TiedPair():
            return (record.first, record.second)
        case RankedList():
            return record.responses
        case Labelled():
            return (record.response,)


def plan_steps(
    examples: Sequence[Example], sequences_per_step: int, megabatch_steps: int, seed: int, epoch: int
) -> list[list[int]]:
    """Plan the optimizer steps of one epoch; seed and epoch determine the plan.

    Examples that share a sequence stay together in packs of at most `PACK`, so that a step runs the sequence once.
    Packs are shuffled and then sorted by length within groups of ``megabatch_steps`` steps, so that a step holds
    similar lengths while the order of the steps stays random. All sequences of an example are in one step.

    Args:
        examples: The examples.
        sequences_per_step: Sequences of a step; the last pack may exceed it.
        megabatch_steps: Steps whose packs are sorted by length together.
        seed: The seed of the run.
        epoch: From 0.

    Returns:
        Indices of each step's examples; every example is in one step.
    """
    generator = np.random.default_rng((seed, epoch))
    packs = _packs(examples, generator.permutation(len(examples)).tolist())
    shuffled = [packs[i] for i in generator.permutation(len(packs))]
    steps: list[list[int]] = []
    for group in _filled(shuffled, examples, sequences_per_step * megabatch_steps):
        shortest_first = sorted(group, key=lambda pack: (max(examples[i].longest for i in pack), pack))
        for step in _filled(shortest_first, examples, sequences_per_step):
            steps.append([i for pack in step for i in pack])
    return [steps[i] for i in generator.permutation(len(steps))]


def bootstrap_weights(key: str, heads: int, scheme: Literal["poisson", "bernoulli", "none"]) -> list[float]:
    """How often each head's bootstrap sample holds a signal; the key determines it, and the mean over signals is 1.

    Args:
        key: Identifies the signal.
        heads: Number of score heads; with one head the weight is 1.
        scheme: "poisson" draws Poisson(1), the limit of sampling with replacement. "bernoulli" draws 0 or 2 ("double or
            nothing", Owen and Eckles 2012). "none" is always 1.

    Returns:
        One weight for each head.
    """
    if scheme == "none" or heads == 1:
        return [1.0] * heads
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    if scheme == "poisson":
        return [float(w) for w in generator.poisson(1.0, heads)]
    return [2.0 * float(w) for w in generator.integers(0, 2, heads)]


def collate(sequences: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pad sequences at the end.

    Returns:
        input_ids, attention_mask (1 at tokens) and token_type_ids, each (n, longest) int64; the last is None without
        segments.
    """
    longest = max(len(s.ids) for s in sequences)
    ids = torch.full((len(sequences), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    types = None if sequences[0].token_type_ids is None else torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        if types is not None and sequence.token_type_ids is not None:
            types[row, : len(sequence.ids)] = torch.tensor(sequence.token_type_ids)
    return ids, mask, types


def logits_of(model: RewardModel, sequences: Sequence[Encoded], pad: int, token_budget: int) -> Tensor:
    """Logits (n, k), on the CPU, of the sequences in their order.

    Each distinct sequence runs once, in batches of similar length.
    """
    firsts, places = distinct_of(sequences)
    groups = by_length([len(s.ids) for s in firsts], token_budget)
    found = [forward(model, [firsts[i] for i in group], pad) for group in in_step(model, groups)]
    logits = torch.cat(found) if found else torch.zeros(0, model.heads.out_features)
    order = torch.argsort(torch.tensor([i for group in groups for i in group], dtype=torch.long))
    return logits[order[torch.tensor(places, dtype=torch.long)]]


def distinct_of(sequences: Sequence[Encoded]) -> tuple[list[Encoded], list[int]]:
    """The distinct sequences, and for each sequence the index of its own among them."""
    distinct: dict[SequenceKey, int] = {}
    firsts: list[Encoded] = []
    places = []
    for sequence in sequences:
        place = distinct.setdefault(_key_of(sequence), len(distinct))
        if place == len(firsts):
            firsts.append(sequence)
        places.append(place)
    return firsts, places


def forward(model: RewardModel, sequences: Sequence[Encoded], pad: int) -> Tensor:
    """Logits (n, k), on the CPU, of sequences that are run in one batch on the model's device."""
    device = model.heads.weight.device
    ids, mask, types = collate(sequences, pad)
    logits: Tensor = model(ids.to(device), mask.to(device), None if types is None else types.to(device))
    return logits.cpu()


def _example(record: Record, sequences: tuple[Encoded, ...]) -> Example:
    key = record.event_id or "\x1f".join(responses_of(record))
    prompt = hashlib.sha256(repr(record.prompt).encode()).hexdigest()
    match record:
        case Pair():
            shorter_won = len(record.chosen) < len(record.rejected)
            return Example("pair", sequences, record.weight, key, 0.0, shorter_won, prompt, record.margin)
        case TiedPair():
            return Example("tie", sequences, record.weight, key, prompt=prompt)
        case RankedList():
            return Example("ranking", sequences, record.weight, key, prompt=prompt)
        case Labelled():
            return Example("label", sequences, record.weight, key, label=record.label, prompt=prompt)


def _key_of(sequence: Encoded) -> SequenceKey:
    return tuple(sequence.ids), tuple(sequence.token_type_ids or ())


def _packs(examples: Sequence[Example], order: Iterable[int]) -> list[list[int]]:
    """The indices, in the given order, as packs of at most `PACK` examples that share a sequence."""
    uses = Counter(_key_of(s) for example in examples for s in example.sequences)
    packs: list[list[int]] = []
    open_packs: dict[SequenceKey, list[int]] = {}
    for index in order:
        shared = max((_key_of(s) for s in examples[index].sequences), key=lambda key: uses[key])
        pack = open_packs.get(shared)
        if pack is None or len(pack) == PACK:
            open_packs[shared] = pack = []
            packs.append(pack)
        pack.append(index)
    return packs


def _filled(packs: Iterable[list[int]], examples: Sequence[Example], sequences: int) -> list[list[list[int]]]:
    """The packs, in their order, as groups of at least ``sequences`` sequences; the last may have fewer."""
    groups: list[list[list[int]]] = []
    held = sequences
    for pack in packs:
        if held >= sequences:
            groups.append([])
            held = 0
        groups[-1].append(pack)
        held += sum(len(examples[i].sequences) for i in pack)
    return groups
