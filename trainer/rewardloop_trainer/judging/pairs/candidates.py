"""Pairs of responses that can be judged, with what people said about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewardloop.formats.messages import prompt_of, turns
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_data.judgements import Labels
from rewardloop_data.recognise import Reading, recognise_judged
from rewardloop_data.rows import Json, RowError, kind_of, turns_of
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.preferences import Pair, Prompt, TiedPair, from_event, pairs_of, source_of
from rewardloop_trainer.judging.judge import Duel

_SHOWN = 10


class UnusablePairs(Exception):
    """Raised when rows of a file cannot be used; the message has a line for each of the first ones."""


@dataclass(frozen=True, slots=True)
class PersonSaid:
    """What one person said of a pair.

    Attributes:
        annotator: Opaque id of the person; "" if it is unknown.
        wins: 1 if the pair's first response was preferred, 0 if the second was, 1/2 for a tie.
    """

    annotator: str
    wins: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair that can be judged.

    Attributes:
        duel: The prompt and the two responses.
        people: What people said about it, if they did.
        generation_id: The generation that gave both responses; "" if it is not known.
        first: Index of the duel's first response in the generation.
        second: Index of the second one.
        scores: Scores of the two responses, if they were scored already.
        spreads: Spreads of the score heads for them.
    """

    duel: Duel
    people: tuple[PersonSaid, ...] = ()
    generation_id: str = ""
    first: int = 0
    second: int = 1
    scores: tuple[float, float] | None = None
    spreads: tuple[float, float] | None = None

    @property
    def key(self) -> str:
        """Name the prompt with its two responses, in whichever order they stand."""
        return duel_key(self.duel)


def duel_key(duel: Duel) -> str:
    """Name a prompt with two responses, in whichever order they stand, by 32 hexadecimal digits."""
    said = repr((duel.prompt, sorted((duel.first, duel.second))))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as a text that `prompt_from` reads."""
    return prompt_of(prompt).SerializeToString(deterministic=True).hex()


def prompt_from(text: str) -> Prompt:
    """Read a prompt that `prompt_text` wrote."""
    return turns(common_pb2.Prompt.FromString(bytes.fromhex(text)))


def of_people(events: Iterable[feedback_pb2.FeedbackEvent]) -> dict[str, Candidate]:
    """Return the pairs that people judged, by their keys; signals of other sources are passed over."""
    found: dict[str, Candidate] = {}
    for event in events:
        add_judged(found, event)
    return found


def add_judged(found: dict[str, Candidate], event: feedback_pb2.FeedbackEvent) -> None:
    """Add what one signal says, if a person gave it, to the pairs that people judged."""
    if source_of(event) != "human" or event.WhichOneof("signal") == "edit":
        return
    texts = list(event.responses)
    for record in from_event(event):
        if isinstance(record, TiedPair):
            compared: list[tuple[str, str, float]] = [(record.first, record.second, 0.5)]
        else:
            compared = [(pair.chosen, pair.rejected, 1.0) for pair in pairs_of([record])]
        for first, second, wins in compared:
            candidate = Candidate(
                Duel(record.prompt, first, second),
                (PersonSaid(record.annotator, wins),),
                event.generation_id,
                texts.index(first),
                texts.index(second),
            )
            before = found.get(candidate.key)
            found[candidate.key] = candidate if before is None else _joined(before, candidate)


def _joined(before: Candidate, more: Candidate) -> Candidate:
    """Add what was said of the same pair."""
    same = before.duel.first == more.duel.first
    said = (PersonSaid(each.annotator, each.wins if same else 1 - each.wins) for each in more.people)
    return replace(before, people=(*before.people, *said))


def read_pairs(source: SourceFile) -> list[Candidate]:
    """Read the pairs of a file, each once, in its order.

    Rows are those of `rewardloop feedback import`, of which every comparison is a pair that a person judged, and
    ``{prompt, responses}``, of which the first response makes a pair with each other one.

    Raises:
        UnusablePairs: If any row cannot be used, or there is no pair.
        UnreadableFile: If the file cannot be read.
    """
    found: dict[str, Candidate] = {}
    problems: list[str] = []
    reading = recognise_judged(source.shown, source.lines(), Choices())
    for line in source.lines():
        try:
            for candidate in _row(line.value(), reading):
                before = found.get(candidate.key)
                found[candidate.key] = candidate if before is None else _joined(before, candidate)
        except RowError as error:
            problems.append(f"{source.path}:{line.number}: {error}")
    if problems:
        more = [f"{len(problems)} rows are unusable"] if len(problems) > _SHOWN else []
        raise UnusablePairs("\n".join([*problems[:_SHOWN], *more]))
    if not found:
        raise UnusablePairs(f"{source.path}: has no pair of different responses")
    return list(found.values())


def _row(row: Json, reading: Reading | None) -> Iterator[Candidate]:
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}, not an object")
    row = {key: value for key, value in row.items() if value is not None}
    if reading is not None and reading.is_judged(row):
        yield from of_people(reading.events(row, Labels())).values()
        return
    if "responses" not in row:
        raise RowError("has neither responses nor a judgement of a known shape")
    texts = row["responses"]
    if not isinstance(texts, list) or not all(isinstance(each, str) and each.strip() for each in texts):
        raise RowError("responses: is not a list of texts")
    if len(texts) < 2:
        raise RowError("responses: needs two or more")
    if "prompt" not in row:
        raise RowError("prompt: is absent")
    prompt = turns_of("prompt", row["prompt"], row.get("tools"))
    for i in range(1, len(texts)):
        if texts[i] != texts[0]:
            yield Candidate(Duel(prompt, str(texts[0]), str(texts[i])), first=0, second=i)


def people_text(people: Sequence[PersonSaid]) -> str:
    """Return what people said as a text that `people_from` reads."""
    return json.dumps([[each.annotator, each.wins] for each in people])


def people_from(text: str) -> tuple[PersonSaid, ...]:
    """Read what `people_text` wrote."""
    said: list[tuple[str, float]] = json.loads(text)
    return tuple(PersonSaid(annotator, wins) for annotator, wins in said)


def as_records(key: str, candidate: Candidate, judge: str, wins: float | None) -> list[Pair]:
    """Return what was said of a pair as records, by which `measure_sources` compares the judge with people.

    Args:
        key: Names the pair.
        candidate: The pair.
        judge: The judge's name.
        wins: What the judge said; None if it said nothing.
    """
    duel = candidate.duel

    def record(number: int, said: float, **about: Any) -> list[Pair]:
        if said == 0.5:
            return []
        texts = (duel.first, duel.second) if said > 0.5 else (duel.second, duel.first)
        return [Pair(duel.prompt, *texts, 1.0, f"{key}-{number}", **about)]

    found = [p for i, each in enumerate(candidate.people) for p in record(i, each.wins, annotator=each.annotator)]
    if wins is not None:
        found += record(-1, wins, annotator=judge, source="llm_judge")
    return found


def tags_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags of a signal cut to the lengths that a signal may have."""
    return {key[:64]: value[:64] for key, value in tags.items() if value}
