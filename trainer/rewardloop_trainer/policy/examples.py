"""What a policy learns from: prompts, and people's judgements as pairs and as thumbs, each kind from both.

A signal has the same weight in every algorithm. A pair counts as one comparison whether its responses are learned from
together or each alone, and two opposite thumbs count as one comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from rewardloop.formats.vocabulary import Algorithm, AlgorithmChoice
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, Record, pairs_of, thumbs_of, weighing
from rewardloop_trainer.learning.run_control import NothingToLearnFrom as NothingToLearnFrom

Judged = TypeVar("Judged", Pair, Labelled)


@dataclass(frozen=True, slots=True)
class Examples:
    """Everything that any algorithm learns from: each one takes the field that it needs.

    ``prompts`` are distinct.
    """

    prompts: Sequence[Prompt]
    pairs: Sequence[Pair]
    thumbs: Sequence[Labelled]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Self:
        prompts = tuple(dict.fromkeys(record.prompt for record in records))
        return cls(prompts, pairs_of(records), thumbs_of(records))

    def all_as_pairs(self) -> list[Pair]:
        """The pairs, and opposite thumbs for one prompt as pairs."""
        return [*self.pairs, *pairs_from_thumbs(self.thumbs)]

    def all_as_thumbs(self) -> list[Labelled]:
        """The thumbs, and the two responses of each pair as thumbs."""
        return [*self.thumbs, *thumbs_from_pairs(self.pairs)]


def choose_algorithm(choice: AlgorithmChoice, examples: Examples) -> Algorithm:
    """Return the algorithm; ``auto`` is kto if there are more thumbs than pairs by weight, else dpo.

    Raises:
        NothingToLearnFrom: If the choice is ``auto`` and there is neither a pair nor a thumb.
    """
    if choice != "auto":
        return choice
    pairs, thumbs = (sum(each.weight for each in kind) for kind in (examples.pairs, examples.thumbs))
    if not examples.pairs and not examples.thumbs:
        raise NothingToLearnFrom(
            "there is no pair, no thumb and no rating to train on; an algorithm such as grpo learns from the policy's "
            "own answers to prompts alone"
        )
    return "kto" if thumbs > pairs else "dpo"


def thumbs_from_pairs(pairs: Iterable[Pair]) -> list[Labelled]:
    """The chosen response of each pair as wanted and the rejected one as unwanted, each with half of its weight."""
    return [
        Labelled(pair.prompt, text, label, pair.weight / 2, pair.event_id, pair.tags, pair.annotator, pair.source)
        for pair in pairs
        for text, label in ((pair.chosen, 1.0), (pair.rejected, 0.0))
    ]


def pairs_from_thumbs(thumbs: Iterable[Labelled]) -> list[Pair]:
    """Pair wanted with unwanted responses to the same prompt.

    Every thumb for a prompt that has both kinds is in a pair; those of the rarer kind are in several. Together the
    pairs of a prompt weigh as much as the thumbs of the kind that weighs less, so that two thumbs are one comparison. A
    pair has an annotator if both thumbs are one person's.
    """
    by_prompt: dict[Prompt, tuple[list[Labelled], list[Labelled]]] = {}
    for thumb in weighing(thumbs):
        by_prompt.setdefault(thumb.prompt, ([], []))[thumb.is_wanted].append(thumb)
    found: list[Pair] = []
    for prompt, (unwanted, wanted) in by_prompt.items():
        if not unwanted or not wanted:
            continue
        count = max(len(unwanted), len(wanted))
        matched = [(wanted[i % len(wanted)], unwanted[i % len(unwanted)]) for i in range(count)]
        total = min(sum(t.weight for t in wanted), sum(t.weight for t in unwanted))
        scale = total / (sum(up.weight * down.weight for up, down in matched) or 1.0)
        for up, down in matched:
            annotator = up.annotator if up.annotator == down.annotator else ""
            weight = scale * up.weight * down.weight
            found.append(Pair(prompt, up.response, down.response, weight, up.event_id, up.tags, annotator, up.source))
    return [pair for pair in found if pair.chosen != pair.rejected and pair.weight > 0]
