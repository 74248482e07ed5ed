"""Shapes of judgements of single responses: labels, votes and ratings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rewardloop_data.judgements import Approved, Edited, Graded, Judgement
from rewardloop_data.rows import RowError, is_int, short
from rewardloop_data.shapes.comparisons import answer
from rewardloop_data.shapes.shape import PROMPT, Choices, Row, Shape, different, judged, number, prompt_in

MAX_VOTES = 1000


def _kto(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt, label = prompt_in(row, choices), row["label"]
    if label not in (True, False):  # 1 and 0 equal these, and count as labels
        raise RowError(f"label: is {short(label)}, not true or false")
    yield judged(row, prompt, [answer("completion", row["completion"], prompt, choices)], Approved(bool(label)))


def _signed(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt, label = prompt_in(row, choices), row["label"]
    if isinstance(label, bool) or label not in (1, -1):
        raise RowError(f"label: is {short(label)}, not 1 or -1")
    yield judged(row, prompt, [answer("completion", row["completion"], prompt, choices)], Approved(label == 1))


def _label_marks(row: Row) -> Iterable[str]:
    yield f"label {row['label']!r}"[:40]


def _label_doubt(marks: Counter[str], choices: Choices) -> str:
    if marks["label -1"]:
        return "labels of -1 are there: say --format signed-labels if 1 is a thumb up and -1 a thumb down"
    return ""


def _votes(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = prompt_in(row, choices)
    text = answer("response", row["response"], prompt, choices)
    given = [(key, row[key]) for key in ("up", "down") if key in row]
    if len(given) == 1 and isinstance(given[0][1], bool):
        yield judged(row, prompt, [text], Approved(given[0][1] == (given[0][0] == "up")))
        return
    counts = {"up": 0, "down": 0}
    for key, count in given:
        if isinstance(count, bool) or not is_int(count) or not 0 <= count <= MAX_VOTES:
            raise RowError(f"{key}: is {short(count)}, not a number of votes (0..{MAX_VOTES})")
        counts[key] = count
    for up in [True] * counts["up"] + [False] * counts["down"]:
        yield judged(row, prompt, [text], Approved(up))


def _vote_marks(row: Row) -> Iterable[str]:
    if "up" in row and "down" in row:
        yield "both"
    for key in ("up", "down"):
        value = row.get(key)
        if isinstance(value, bool):
            yield "flag"
        elif is_int(value) and value > 1:
            yield "count"
        elif value == 0:
            yield "zero"


def _vote_doubt(marks: Counter[str], choices: Choices) -> str:
    if marks["zero"] and not marks["both"] and not marks["count"]:
        return (
            "all numbers are 0 and 1 in one column, so that 0 may be a thumb or no vote: say --format votes (0 is no "
            "vote) or --format thumbs (0 is the other thumb)"
        )
    if marks["flag"] and (marks["count"] or marks["zero"]):
        return "some values are true or false and others are numbers: split the file"
    return ""


def _thumbs(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = prompt_in(row, choices)
    text = answer("response", row["response"], prompt, choices)
    key, value = next(((key, row[key]) for key in ("up", "down") if key in row), ("up", None))
    if value not in (True, False):
        raise RowError(f"{key}: is {short(value)}, not 0 or 1")
    yield judged(row, prompt, [text], Approved(bool(value) == (key == "up")))


def _rating(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = prompt_in(row, choices)
    key = "completion" if "completion" in row else "response"
    if key not in row:
        raise RowError("completion: is absent")
    text = answer(key, row[key], prompt, choices)
    ends = choices.scale or tuple(number(end, row.get(end)) for end in ("minimum", "maximum"))
    value = number("rating", row["rating"])
    if not ends[0] <= value <= ends[1]:
        raise RowError(f"rating: is {value:g}, not within {ends[0]:g} and {ends[1]:g}")
    yield judged(row, prompt, [text], Graded(value, float(ends[0]), float(ends[1])))


def _edit(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = prompt_in(row, choices)
    texts = [answer(key, row[key], prompt, choices) for key in ("response", "edited_text")]
    different(texts, "response and edited_text")
    yield judged(row, prompt, texts[:1], Edited(texts[1]))


def _rating_marks(row: Row) -> Iterable[str]:
    if "minimum" not in row or "maximum" not in row:
        yield "no scale"


def _rating_doubt(marks: Counter[str], choices: Choices) -> str:
    if marks["no scale"] and choices.scale is None:
        return "nothing says between which numbers a rating is: say --scale, such as --scale 1..5"
    return ""


SHAPES = (
    Shape(
        "labels",
        "{prompt, completion, label: true, false, 1 or 0}",
        "a thumb",
        ("prompt", "completion", "label"),
        _kto,
        reads=PROMPT,
        marks=_label_marks,
        doubt=_label_doubt,
        is_own=True,
    ),
    Shape(
        "signed-labels",
        "{prompt, completion, label: 1 or -1}",
        "a thumb",
        ("prompt", "completion", "label"),
        _signed,
        reads=PROMPT,
        is_by_name=True,
    ),
    Shape(
        "votes",
        "{prompt, response, up, down}, numbers of votes, or true or false",
        "a thumb for each vote",
        ("prompt", "response"),
        _votes,
        reads=PROMPT | {"up", "down"},
        fits=lambda row: "up" in row or "down" in row,
        marks=_vote_marks,
        doubt=_vote_doubt,
        is_own=True,
    ),
    Shape(
        "thumbs",
        "{prompt, response, up: 0 or 1}",
        "a thumb",
        ("prompt", "response"),
        _thumbs,
        reads=PROMPT | {"up", "down"},
        fits=lambda row: ("up" in row) != ("down" in row),
        is_by_name=True,
    ),
    Shape(
        "edits",
        "{prompt, response, edited_text}",
        "an edit: the edited text is better",
        ("prompt", "response", "edited_text"),
        _edit,
        reads=PROMPT,
        is_own=True,
    ),
    Shape(
        "rating",
        "{prompt, completion or response, rating, minimum, maximum}",
        "a rating; --scale gives minimum and maximum of all rows",
        ("prompt", "rating"),
        _rating,
        reads=PROMPT | {"completion", "response", "minimum", "maximum"},
        marks=_rating_marks,
        doubt=_rating_doubt,
        is_own=True,
    ),
)
