"""What a valid preference signal is, and what label a judged response has. Imports protobuf alone.

The server refuses a signal with a problem, the client's fake does the same, and the trainer puts one that reached the
stream some other way aside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.vocabulary import SIGNAL_KINDS
from rewardloop.v1 import feedback_pb2

MOST_RESPONSES = 64  # of one event
MOST_GUIDELINE_CHARACTERS = 64  # of the guidelines' version
MOST_IMPORT_ID_CHARACTERS = 64


def signal_problems(event: feedback_pb2.FeedbackEvent, responses: Sequence[str] | None) -> list[tuple[str, str]]:
    """Find what is wrong with the signal of an event.

    A sound signal is told in a few microseconds, because each signal of a flood is looked at.

    Args:
        event: The event; only its signal, its display order and its guidelines' version are looked at.
        responses: The responses that the signal is about; None if they are not known yet. What depends on them is then
            not checked.

    Returns:
        The path of each wrong field within the event, and what is wrong with it.
    """
    count = None if responses is None else len(responses)
    problems: list[tuple[str, str]] = []
    judged: Sequence[int] = ()
    match kind := event.WhichOneof("signal"):
        case None:
            problems.append(("signal", f"none of {', '.join(SIGNAL_KINDS[:-1])} and {SIGNAL_KINDS[-1]} is set"))
        case "choice":
            choice = event.choice
            judged = (choice.chosen, choice.rejected)
            _two(problems, kind, ("chosen", "rejected"), judged, count)
            if choice.HasField("strength") and not 0 < choice.strength <= 1:
                problems.append(("choice.strength", "not above 0 and at most 1"))
        case "tie":
            judged = (event.tie.first, event.tie.second)
            _two(problems, kind, ("first", "second"), judged, count)
        case "ranking":
            order = event.ranking.order
            judged = order[: MOST_RESPONSES + 1]
            if len(order) < 2:
                problems.append(("ranking.order", "fewer than 2 responses"))
            elif len(order) > (MOST_RESPONSES if count is None else count) or sorted(order) != list(
                range(len(order) if count is None else count)
            ):
                problems.append(("ranking.order", "not a permutation of the indices of all responses"))
        case "thumb" | "rating" | "edit":
            judged = (getattr(event, kind).response,)
            if (problem := _index(judged[0], count)) is not None:
                problems.append((f"{kind}.response", problem))
    if kind == "rating":
        problems += _rating(event.rating)
    if kind == "edit":
        problems += _edit(event.edit, responses)
    if event.display_order:
        problems += _display_order(event.display_order, judged, count)
    if len(event.guideline_version) > MOST_GUIDELINE_CHARACTERS:
        problems.append(("guideline_version", f"has more than {MOST_GUIDELINE_CHARACTERS} characters"))
    if len(event.import_id) > MOST_IMPORT_ID_CHARACTERS:
        problems.append(("import_id", f"has more than {MOST_IMPORT_ID_CHARACTERS} characters"))
    return problems


def person_of(event: feedback_pb2.FeedbackEvent) -> str:
    """Return the text that names who judged among the people of all callers; "" if the signal names nobody.

    The same annotator_id means different people to different callers.
    """
    return key_of(event.caller, event.annotator_id) if event.annotator_id else ""


def signal_key(event: feedback_pb2.FeedbackEvent) -> str:
    """Return the text that names a signal among those of all callers."""
    return key_of(event.caller, event.event_id)


def key_of(caller: str, event_id: str) -> str:
    """Return the text that names a signal of ``caller``. Without a caller it is the event_id.

    A caller's name has no control character, so that no two callers' signals have one name.
    """
    return f"{caller}\x1f{event_id}" if caller else event_id


def parts_of(key: str) -> tuple[str, str]:
    """Return the caller and the id that `key_of` made a text of."""
    caller, separator, own = key.partition("\x1f")
    return (caller, own) if separator else ("", key)


def aspect_of(event: feedback_pb2.FeedbackEvent) -> str:
    """Return the name of the reward model that learns from a signal."""
    return event.aspect or REWARD


def judged_alone(event: feedback_pb2.FeedbackEvent) -> tuple[int, float] | None:
    """The response that a valid thumb or rating judges, and its label; None for other signals.

    The label is in [0, 1], where 1 is the best: 0 or 1 for a thumb, and the rating mapped affinely from
    [minimum, maximum].
    """
    match event.WhichOneof("signal"):
        case "thumb":
            return event.thumb.response, float(event.thumb.up)
        case "rating":
            rating = event.rating
            return rating.response, (rating.value - rating.minimum) / (rating.maximum - rating.minimum)
    return None


def _display_order(order: Sequence[int], judged: Iterable[int], count: int | None) -> Iterator[tuple[str, str]]:
    """Find what is wrong with a display order, and a response that the signal judges although the order leaves it out.

    Args:
        order: The order, with one response or more.
        judged: The responses that the signal judges.
        count: How many responses there are; None if that is not known.
    """
    if len(order) > (MOST_RESPONSES if count is None else count):
        yield "display_order", "has more entries than there are responses"
    else:
        if len(set(order)) != len(order):
            yield "display_order", "names a response twice"
        for index in order:
            if (problem := _index(index, count)) is not None:
                yield "display_order", problem
                break
    if len(order) <= MOST_RESPONSES and (hidden := set(judged) - set(order)):
        yield "display_order", f"leaves out response {min(hidden)}, which the signal judges"


def _index(index: int, count: int | None) -> str | None:
    """Return what is wrong with the index of a response, or None."""
    if index >= 0 and (count is None or index < count):
        return None
    known = "" if count is None else f" of {count} responses"
    return f"{index} is not an index{known}"


def _two(
    problems: list[tuple[str, str]], kind: str, names: tuple[str, str], pair: Sequence[int], count: int | None
) -> None:
    """Append what is wrong with the indices of two different responses, in the fields ``names`` of ``kind``."""
    for i, index in enumerate(pair):
        if (problem := _index(index, count)) is not None:
            problems.append((f"{kind}.{names[i]}", problem))
    if pair[0] == pair[1]:
        problems.append((f"{kind}.{names[1]}", f"the same as {names[0]}"))


def _rating(rating: feedback_pb2.Rating) -> Iterator[tuple[str, str]]:
    infinite = [name for name in ("value", "minimum", "maximum") if not math.isfinite(getattr(rating, name))]
    for name in infinite:
        yield f"rating.{name}", "not a finite number"
    if infinite:
        return
    if rating.minimum >= rating.maximum:
        yield "rating.maximum", "not greater than minimum"
    elif not rating.minimum <= rating.value <= rating.maximum:
        yield "rating.value", "not between minimum and maximum"


def _edit(edit: feedback_pb2.Edit, responses: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    text = edit.edited_text
    if not text or text.isspace():
        yield "edit.edited_text", "empty"
    if responses is not None and 0 <= edit.response < len(responses) and text == responses[edit.response]:
        yield "edit.edited_text", "the same as the response"
