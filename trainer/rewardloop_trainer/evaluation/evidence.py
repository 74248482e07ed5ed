"""What people said about held-out prompts, as the statements that a reward model is measured by."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from rewardloop.formats.text import Encoder, RefusedConversation
from rewardloop_trainer.clusters import ClusteredShare, Ints, as_share, effective_clusters, two_way_mean
from rewardloop_trainer.data.length_share import NO_SHARE, LengthShare
from rewardloop_trainer.data.preferences import Labelled, Pair, Record, TiedPair, pairs_of
from rewardloop_trainer.data.split import keys_of
from rewardloop_trainer.reward.evaluate import Floats, correctness, pair_margins
from rewardloop_trainer.reward.examples import logits_of, responses_of
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining

_TOKEN_BUDGET = 4096
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Statements:
    """What was said about pairs of answers, or about answers on their own.

    Attributes:
        targets: (n,), in [0, 1]. Of a pair 1, because the first answer was preferred, and of a tie 1/2. Of a thumb or
            rating its label.
        weights: (n,), as training weighs them. The pairs of one ranking share its weight.
        clusters: (n,), the number of the prompt. Statements of one prompt are not independent.
    """

    targets: Floats
    weights: Floats
    clusters: Ints

    def __len__(self) -> int:
        return len(self.targets)

    def where(self, kept: Mask) -> Statements:
        return Statements(self.targets[kept], self.weights[kept], self.clusters[kept])


@dataclass(frozen=True, slots=True)
class Evidence:
    """The statements of held-out signals, comparisons and grades apart.

    Attributes:
        pairs: The answers of each comparison; in a tie their order means nothing.
        comparisons: What was said about them.
        graded: The answers that were judged on their own.
        grades: What was said about them.
        pair_keys: For each comparison, what identifies it in every round.
        grade_keys: The same for each grade.
    """

    pairs: tuple[Pair, ...]
    comparisons: Statements
    graded: tuple[Labelled, ...]
    grades: Statements
    pair_keys: tuple[str, ...]
    grade_keys: tuple[str, ...]

    @property
    def prompts(self) -> float:
        """The effective number of prompts: of equally weighted ones their number, and 1 if one outweighs the rest."""
        both = joined(self.comparisons, self.grades)
        return effective_clusters(both.weights, both.clusters)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.pair_keys + self.grade_keys

    def among(self, keys: Collection[str]) -> tuple[Evidence, Mask, Mask]:
        """Return the evidence with these keys, and the masks of the comparisons and of the grades that it keeps."""
        of_pairs = np.array([key in keys for key in self.pair_keys], dtype=bool)
        of_grades = np.array([key in keys for key in self.grade_keys], dtype=bool)
        kept = Evidence(
            tuple(pair for pair, is_kept in zip(self.pairs, of_pairs, strict=True) if is_kept),
            self.comparisons.where(of_pairs),
            tuple(each for each, is_kept in zip(self.graded, of_grades, strict=True) if is_kept),
            self.grades.where(of_grades),
            tuple(key for key in self.pair_keys if key in keys),
            tuple(key for key in self.grade_keys if key in keys),
        )
        return kept, of_pairs, of_grades


@dataclass(frozen=True, slots=True)
class Readings:
    """What one model says of an `Evidence`, without the share of length.

    Attributes:
        margins: (comparisons,), the first answer's logit less the second one's, as means over the heads.
        logits: (grades,), the answer's logit.
    """

    margins: Floats
    logits: Floats

    @property
    def unusable(self) -> int:
        """How many are not finite."""
        return int((~np.isfinite(self.margins)).sum() + (~np.isfinite(self.logits)).sum())

    def where(self, of_pairs: Mask, of_grades: Mask) -> Readings:
        return Readings(self.margins[of_pairs], self.logits[of_grades])

    def by_key(self, evidence: Evidence) -> dict[str, float]:
        return dict(zip(evidence.keys, (float(x) for x in (*self.margins, *self.logits)), strict=True))

    @classmethod
    def of(cls, evidence: Evidence, by_key: Mapping[str, float]) -> Readings:
        """Take the readings of the evidence from ``by_key``. Raises KeyError if one is missing."""
        return cls(
            np.array([by_key[key] for key in evidence.pair_keys], dtype=np.float64),
            np.array([by_key[key] for key in evidence.grade_keys], dtype=np.float64),
        )


def evidence_of(records: Iterable[Record], weights: RewardTraining | None = None) -> Evidence:
    """Return what the records say. A statement that weighs nothing is left out: it is no evidence.

    Args:
        records: Held-out records.
        weights: The weights of ties, thumbs and ratings beside a choice, as training has them; the defaults if None.
    """
    weights = weights or RewardTraining.model_validate({})
    numbers: dict[str, int] = {}
    pairs: list[tuple[Pair, float, float, str]] = []
    graded: list[tuple[Labelled, float, float, str]] = []
    for record in records:
        key = _key(record)
        match record:
            case TiedPair():
                shown = Pair(record.prompt, record.first, record.second)
                pairs.append((shown, 0.5, weights.tie_weight * record.weight, key))
            case Labelled():
                graded.append((record, record.label, weights.pointwise_weight * record.weight, key))
            case _:
                pairs += [(pair, 1.0, pair.weight, f"{key}.{i}") for i, pair in enumerate(pairs_of([record]))]

    pairs = [row for row in pairs if row[2] > 0]
    graded = [row for row in graded if row[2] > 0]

    def statements(rows: Sequence[tuple[Pair | Labelled, float, float, str]]) -> Statements:
        return Statements(
            np.array([target for _, target, _, _ in rows], dtype=np.float64),
            np.array([weight for _, _, weight, _ in rows], dtype=np.float64),
            np.array([numbers.setdefault(keys_of(r.prompt).root, len(numbers)) for r, *_ in rows], dtype=np.int64),
        )

    return Evidence(
        tuple(pair for pair, *_ in pairs),
        statements(pairs),
        tuple(record for record, *_ in graded),
        statements(graded),
        tuple(key for *_, key in pairs),
        tuple(key for *_, key in graded),
    )


@dataclass(frozen=True, slots=True)
class AtRandom:
    """How often a model would order the answers as people do if pairs had been drawn at random among those sampled.

    What is shown to people is chosen, for example by what their choice would tell, so that the pairs which are judged
    are harder or easier than others. Each choice is weighed by its exposure, and the weights are normalised by their
    sum.

    Attributes:
        accuracy: The accuracy.
        effective: Of how many equally weighed choices it tells as much: (sum w)^2 / sum w^2.
        choices: The choices whose exposure is known.
    """

    accuracy: ClusteredShare
    effective: float
    choices: int


def at_random(
    pairs: Sequence[Pair], margins: Floats, weights: Floats, prompts: Ints, people: Ints | None = None
) -> AtRandom | None:
    """Measure a model on choices as if their pairs had been drawn at random; None if no exposure is known.

    Args:
        pairs: The pairs of strict choices, n.
        margins: (n,), the chosen answer's logit less the rejected one's.
        weights: (n,), what each choice weighs beside the others.
        prompts: (n,), the number of the prompt.
        people: (n,), the number of the person; None for an interval over prompts alone.
    """
    exposures = np.array([pair.exposure or 0.0 for pair in pairs])
    weighed = exposures * weights
    if not weighed.sum() > 0:
        return None
    one = np.zeros(len(pairs), dtype=np.int64)
    mean = as_share(two_way_mean(correctness(margins), weighed, prompts, one if people is None else people))
    effective = float(weighed.sum() ** 2 / (weighed @ weighed))
    return AtRandom(mean, effective, int((weighed > 0).sum()))


def read_evidence(model: RewardModel, encoder: Encoder, evidence: Evidence, length: LengthShare = NO_SHARE) -> Readings:
    """Return what a model says of the evidence.

    Args:
        model: The model.
        encoder: Its tokenizer and text layout.
        evidence: The evidence.
        length: What the model's calibration takes off because of length.
    """
    margins = pair_margins(model, encoder, evidence.pairs, length)
    return Readings(margins, _logits(model, encoder, evidence.graded, length))


def joined(*parts: Statements) -> Statements:
    return Statements(
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.clusters for part in parts]),
    )


def _logits(model: RewardModel, encoder: Encoder, graded: Sequence[Labelled], length: LengthShare) -> Floats:
    if not graded:
        return np.zeros(0)
    sequences = []
    for group in encoder.groups([(each.prompt, (each.response,)) for each in graded]):
        if isinstance(group, RefusedConversation):
            raise group
        sequences += group
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits: Floats = logits_of(model, sequences, encoder.format.pad, _TOKEN_BUDGET).double().mean(1).numpy()
    model.train(was_training)
    return logits - length.of(sequences)


def statement_key(name: str) -> str:
    """Return the digest that stands for the id of a signal beside a version, because an id may name a person."""
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def _key(record: Record) -> str:
    """Identify a record in every round: by its signal, or by its texts if the signal has no id."""
    return statement_key(record.event_id or statement_key(repr((record.prompt, responses_of(record)))))
