"""What a signal shows of how it was given: which button, which side of the screen, how fast, and about which words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.signals import aspect_of, judged_alone, person_of, signal_key
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList, Record, TiedPair, from_event, pairs_of

_WORD = re.compile(r"\w{3,}")
_MOST_WORDS = 64


@dataclass(frozen=True, slots=True)
class Gesture:
    """How one signal was given.

    Attributes:
        key: The signal's key (`signal_key`).
        person: Who gave it: caller and annotator_id together; "" if the signal names nobody.
        source: Who or what judged: human, llm_judge or implicit.
        caller: By whose credentials it came.
        arrived_ms: When it arrived, in milliseconds since 1970.
        given_ms: When it was given by the caller's clock; None if the signal does not say it.
        first_won: Whether the response that was seen first won; None if the order is unknown or no two were compared.
        longer_won: Whether the longer response won; None if no two of different length were compared.
        button: What was pressed, if the signal is a thumb, a rating or a tie; else "".
        characters: Characters of the responses that were judged.
        content: A hash of what was asked, about which aspect, and what was said.
        question: A hash of what was asked, about which aspect.
        wins: Hashes of words in the winning response alone.
        loses: Hashes of words in the losing response alone.
    """

    key: str
    person: str
    source: str
    caller: str
    arrived_ms: int
    given_ms: int | None
    first_won: bool | None
    longer_won: bool | None
    button: str
    characters: int
    content: int
    question: int
    wins: tuple[int, ...] = ()
    loses: tuple[int, ...] = ()


def gesture_of(event: feedback_pb2.FeedbackEvent) -> Gesture:
    """Return how a valid event was given. Raises as `from_event`."""
    records = from_event(event)
    pairs = pairs_of(records)
    first_won = longer_won = None
    wins: tuple[int, ...] = ()
    loses: tuple[int, ...] = ()
    if len(pairs) == 1:
        (pair,) = pairs
        first_won = _first_won(event)
        if len(pair.chosen) != len(pair.rejected):
            longer_won = len(pair.chosen) > len(pair.rejected)
        wins, loses = words_apart(pair.chosen, pair.rejected)
    asked, said = _texts(records)
    about = (*aspect_asked(event), *asked)
    return Gesture(
        signal_key(event),
        person_of(event),
        feedback_pb2.Source.Name(event.source or feedback_pb2.SOURCE_HUMAN).removeprefix("SOURCE_").lower(),
        event.caller,
        event.arrival_time.ToMilliseconds(),
        event.event_time.ToMilliseconds() if event.HasField("event_time") else None,
        first_won,
        longer_won,
        _button(event),
        sum(len(text) for text in said),
        short((str(event.WhichOneof("signal")), *about, *said, _button(event))),
        short((*about, *sorted(said))),
        wins,
        loses,
    )


def aspect_asked(event: feedback_pb2.FeedbackEvent) -> tuple[str, ...]:
    """Return what the hash of a question says of the aspect that was judged: nothing for that of `REWARD`.

    The better one of two responses may be the less harmless one, so that one person says both without thinking again.
    """
    aspect = aspect_of(event)
    return () if aspect == REWARD else (f"aspect\x1e{aspect}",)


def words_apart(one: str, other: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return hashes of the words that one text has and the other does not: the first one's, then the second one's."""
    ours, theirs = (set(_WORD.findall(text.casefold())) for text in (one, other))
    return _hashes(ours - theirs), _hashes(theirs - ours)


def word_hash(word: str) -> int:
    """Return the hash by which a word stands in `Gesture.wins` and `Gesture.loses`."""
    return short((word.casefold(),))


def short(parts: Iterable[str]) -> int:
    """Return a signed 64-bit hash of texts."""
    digest = blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _hashes(words: Iterable[str]) -> tuple[int, ...]:
    """Of many words those with the lowest hashes are kept, so that two texts keep the same ones."""
    return tuple(sorted(word_hash(word) for word in words)[:_MOST_WORDS])


def _first_won(event: feedback_pb2.FeedbackEvent) -> bool | None:
    order: Sequence[int] = list(event.display_order)
    if event.WhichOneof("signal") != "choice" or not {event.choice.chosen, event.choice.rejected} <= set(order):
        return None
    return order.index(event.choice.chosen) < order.index(event.choice.rejected)


def _button(event: feedback_pb2.FeedbackEvent) -> str:
    kind = event.WhichOneof("signal")
    if kind == "tie":
        return "tie"
    judged = judged_alone(event)
    return "" if judged is None else f"{kind} {judged[1]:.3g}"


def _texts(records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what was asked and the responses in the order of what was said."""
    for record in records:
        asked = tuple(f"{turn.role}\x1e{turn.content}" for turn in record.prompt)
        match record:
            case Pair():
                return asked, (record.chosen, record.rejected)
            case TiedPair():
                return asked, (record.first, record.second)
            case RankedList():
                return asked, record.responses
            case Labelled():
                return asked, (record.response,)
    return (), ()
