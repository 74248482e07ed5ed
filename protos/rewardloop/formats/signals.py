"""What a valid preference signal is, and what label a judged response has. Imports protobuf alone.

The server refuses a signal with a problem, the client's fake does the same, and the trainer puts one that reached the
stream some other way aside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.vocabulary import SIGNAL_KINDS
from rewardloop.v1 import feedback_pb2

MOST_RESPONSES = 64  # of one event
MOST_GUIDELINE_CHARACTERS = 64  # of the guidelines' version
MOST_IMPORT_ID_CHARACTERS = 64


def signal_problems(event: feedback_pb2.FeedbackEvent, responses: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """Find what is wrong with the signal of an event.

    Args:
        event: The event; only its signal, its display order and its guidelines' version are looked at.
        responses: The responses that the signal is about; None if they are not known yet. What depends on them is then
            not checked.

    Yields:
        The path of a field within the event, and what is wrong with it.
    """
    count = None if responses is None else len(responses)
    match kind := event.WhichOneof("signal"):
        case None:
            yield "signal", f"none of {', '.join(SIGNAL_KINDS[:-1])} and {SIGNAL_KINDS[-1]} is set"
        case "choice":
            yield from _two("choice", "chosen", event.choice.chosen, "rejected", event.choice.rejected, count)
        case "tie":
            yield from _two("tie", "first", event.tie.first, "second", event.tie.second, count)
        case "ranking":
            order = event.ranking.order
            if len(order) < 2:
                yield "ranking.order", "fewer than 2 responses"
            elif len(order) > (MOST_RESPONSES if count is None else count) or sorted(order) != list(
                range(len(order) if count is None else count)
            ):
                yield "ranking.order", "not a permutation of the indices of all responses"
        case "thumb" | "rating" | "edit":
            yield from _index(f"{kind}.response", getattr(event, kind).response, count)
    if kind == "choice" and event.choice.HasField("strength") and not 0 < event.choice.strength <= 1:
        yield "choice.strength", "not above 0 and at most 1"
    if kind == "rating":
        yield from _rating(event.rating)
    if kind == "edit":
        yield from _edit(event.edit, responses)
    yield from _display_order(event.display_order, count)
    yield from _not_shown(event, kind)
    if len(event.guideline_version) > MOST_GUIDELINE_CHARACTERS:
        yield "guideline_version", f"has more than {MOST_GUIDELINE_CHARACTERS} characters"
    if len(event.import_id) > MOST_IMPORT_ID_CHARACTERS:
        yield "import_id", f"has more than {MOST_IMPORT_ID_CHARACTERS} characters"


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


def _display_order(order: Sequence[int], count: int | None) -> Iterator[tuple[str, str]]:
    if len(order) > (MOST_RESPONSES if count is None else count):
        yield "display_order", "has more entries than there are responses"
        return
    if len(set(order)) != len(order):
        yield "display_order", "names a response twice"
    for index in order:
        problems = list(_index("display_order", index, count))
        if problems:
            yield problems[0]
            return


def _not_shown(event: feedback_pb2.FeedbackEvent, kind: str | None) -> Iterator[tuple[str, str]]:
    """Find a response that the signal judges although the display order, if there is one, leaves it out."""
    match kind:
        case "choice":
            judged = {event.choice.chosen, event.choice.rejected}
        case "tie":
            judged = {event.tie.first, event.tie.second}
        case "ranking":
            judged = set(event.ranking.order[: MOST_RESPONSES + 1])
        case "thumb" | "rating" | "edit":
            judged = {getattr(event, kind).response}
        case _:
            return
    if not 0 < len(event.display_order) <= MOST_RESPONSES:
        return
    if hidden := judged - set(event.display_order):
        yield "display_order", f"leaves out response {min(hidden)}, which the signal judges"


def _index(field: str, index: int, count: int | None) -> Iterator[tuple[str, str]]:
    if index < 0 or (count is not None and index >= count):
        known = "" if count is None else f" of {count} responses"
        yield field, f"{index} is not an index{known}"


def _two(kind: str, one: str, index: int, other: str, other_index: int, count: int | None) -> Iterator[tuple[str, str]]:
    yield from _index(f"{kind}.{one}", index, count)
    yield from _index(f"{kind}.{other}", other_index, count)
    if index == other_index:
        yield f"{kind}.{other}", f"the same as {one}"


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
