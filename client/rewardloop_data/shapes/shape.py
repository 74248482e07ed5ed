"""What a shape of rows declares, what its caller may settle about a file, and the parts that many shapes share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, TypeAlias

from rewardloop.formats.messages import Turn
from rewardloop_data.judgements import Equal, Judgement, Ordered, Preferred, Said
from rewardloop_data.rows import (
    Json,
    RowError,
    Turns,
    is_int,
    kind_of,
    messages_of,
    short,
    spoken,
    text_of,
    tools_in,
    turns_of,
)
from rewardloop_data.transcripts import speakers

Row: TypeAlias = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the caller says about a file, because the file does not say it.

    Attributes:
        format: Name of the shape that every row has; "" lets the keys decide.
        columns: Where the values of a key are, as a path, by the key.
        ignored: Keys that do not matter; "*" stands for every key that is not known.
        indices: Whether indices count from 0 or from 1; "" if nobody said it.
        rankings: Whether ``ranking`` holds the rank of each response, or the order of the responses, best first.
        scale: Lowest and highest grade.
        is_verbatim: Whether texts are taken as they are, even if they hold what stands between turns.
        counts_copies: Whether judgements that are equal, and name nobody, are those of different people.
    """

    format: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    indices: Literal["", "zero-based", "one-based"] = ""
    rankings: Literal["", "ranks", "order"] = ""
    scale: tuple[float, float] | None = None
    is_verbatim: bool = False
    counts_copies: bool = False


Reader: TypeAlias = Callable[[Row, Choices], Iterable[Judgement]]


def _always(row: Row) -> bool:
    return True


def _no_marks(row: Row) -> Iterable[str]:
    return ()


def _no_doubt(marks: Counter[str], choices: Choices) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of rows.

    Attributes:
        name: What --format calls it.
        form: A row, as the documentation writes it.
        says: What a row says, or why none can be read, in words.
        needs: Keys that every row has.
        read: Reads a row; None if no row can be read, for the reason that ``way`` gives.
        reads: Keys that matter where they are.
        skips: Keys of this shape that do not change what a row says.
        way: What to do with a file that cannot be read.
        fits: Whether a row that has the keys has the shape.
        marks: What of a row decides a doubt about the file.
        doubt: Returns what is in doubt after the marks of all rows, with the flag that settles it; "" for nothing.
        is_by_name: Whether only --format chooses it, because its keys are those of another shape.
        is_own: Whether rows of it may stand beside those of other own shapes.
        asks: The key of --column that the shape itself reads, because it says by what to judge; "" for none.
    """

    name: str
    form: str
    says: str
    needs: tuple[str, ...]
    read: Reader | None = None
    reads: frozenset[str] = frozenset()
    skips: frozenset[str] = frozenset()
    way: str = ""
    fits: Callable[[Row], bool] = _always
    marks: Callable[[Row], Iterable[str]] = _no_marks
    doubt: Callable[[Counter[str], Choices], str] = _no_doubt
    is_by_name: bool = False
    is_own: bool = False
    asks: str = ""

    def has(self, row: Row) -> bool:
        """Return whether a row has the shape."""
        return all(key in row for key in self.needs) and self.fits(row)

    def unknown(self, row: Row, choices: Choices) -> list[str]:
        """Return the keys of a row of this shape that may change what it says."""
        if "*" in choices.ignored:
            return []
        known = {*self.needs, *self.reads, *self.skips, *choices.ignored}
        return [key for key in row if key not in known and key not in COMMON and key not in HARMLESS]


_PEOPLE = ("annotator", "annotator_id", "worker", "worker_id", "labeler", "labeler_id")
_NAMED_JUDGEMENT = ("event_id", "judgement_id", "judgment_id", "annotation_id", "comparison_id")
_CONTRADICTIONS = ("tie", "is_tie")

# Keys that may stand in every shape and are read.
COMMON = frozenset((*_PEOPLE, *_NAMED_JUDGEMENT, *_CONTRADICTIONS, "aspect"))

# Keys that say where a row comes from, and nothing about what it says.
HARMLESS = frozenset(
    (
        *("id", "_id", "idx", "index", "row_id", "uuid", "uid", "hash", "prompt_id", "prompt_hash", "example_id"),
        *("question_id", "conversation_id", "session_id", "trace_id", "sample_id", "post_id", "__index_level_0__"),
        *("source", "dataset", "dataset_name", "data_source", "origin", "split", "subset", "batch", "url", "link"),
        *("created_at", "updated_at", "exported_at", "inserted_at", "timestamp", "ts", "tstamp", "date", "time"),
        *("license", "language", "lang", "locale", "category", "topic", "domain", "task", "difficulty", "label_source"),
        *("model", "models", "model_name", "chosen_model", "rejected_model", "model_a", "model_b", "generator"),
        *("probability", "orders_agree", "picked", "principle", "principles", "constitution"),  # of our own files
        *("metadata", "meta", "tags", "note", "notes", "comment", "reason", "rationale", "explanation", "version"),
        *("num_turns", "turns", "chosen_policy", "rejected_policy", "chosen_tokens", "rejected_tokens"),
    )
)

PROMPT = frozenset(("system", "tools", "messages"))


def prompt_in(row: Row, choices: Choices, key: str = "prompt") -> Turns:
    """Return the prompt of a row with its system text and its tools. Raises RowError."""
    value = row[key]
    if isinstance(value, str) and not choices.is_verbatim and isinstance(row.get("messages"), list):
        value = _rendered(value, row["messages"])
    if isinstance(value, str) and not choices.is_verbatim:
        spoken(key, value)
    said = turns_of(key, value, row.get("tools"))
    return with_system(row.get("system"), said if _is_told(row) else _as_listed(row, said))


def _rendered(prompt: str, messages: Json) -> Json:
    """Return the messages if the prompt is a transcript of them, else the prompt."""
    try:
        said = speakers("prompt", prompt)
    except RowError:
        return prompt
    assert isinstance(messages, list)
    return messages if said == messages_of("messages", messages) else prompt


def _is_told(row: Row) -> bool:
    """Return whether ``messages`` says nothing more: it is absent, or what chosen says."""
    return row.get("messages") is None or row["messages"] == row.get("chosen")


def _as_listed(row: Row, prompt: Turns) -> Turns:
    """Return the prompt as ``messages`` beside it has it, with the turns before it. Raises RowError."""
    listed = row["messages"]
    if not isinstance(listed, list):
        raise RowError(f"messages: is {kind_of(listed)}, not a list")
    said = messages_of("messages", listed)
    said = said[:-1] if said[-1].role == "assistant" else said
    tools, asked = prompt[: sum(turn.role == "tools" for turn in prompt)], prompt[-1]
    if (
        not said
        or said[-1] != asked
        or (len(prompt) - len(tools) > 1 and said[-len(prompt) + len(tools) :] != prompt[len(tools) :])
    ):
        raise RowError("messages: does not end with the prompt")
    return (*tools, *said)


def with_system(system: Json, prompt: Turns) -> Turns:
    """Return the prompt after a system text, if there is one. Raises RowError if it has another one."""
    if system is None or (isinstance(system, str) and not system.strip()):
        return prompt
    text = text_of("system", system)
    listed = sum(turn.role == "tools" for turn in prompt)
    said = prompt[listed:]
    if said and said[0].role in ("system", "developer"):
        if said[0].content != text:
            raise RowError("system: differs from the system turn of the prompt")
        return prompt
    return (*prompt[:listed], Turn("system", text), *said)


def text_prompt(row: Row, choices: Choices, text: str, key: str) -> Turns:
    """Return a prompt of one user turn with the row's system text and tools. Raises RowError."""
    said = text if choices.is_verbatim else spoken(key, text)
    return with_system(row.get("system"), (*tools_in(row), Turn("user", text_of(key, said))))


def response_in(field_: str, value: Json, choices: Choices) -> str:
    """Return a response that is a text. Raises RowError."""
    text = text_of(field_, value)
    return text if choices.is_verbatim else spoken(field_, text)


def responses_in(row: Row, choices: Choices, key: str = "responses") -> tuple[str, ...]:
    """Return the responses of a row. Raises RowError."""
    values = row[key]
    if not isinstance(values, list) or not values:
        raise RowError(f"{key}: is not a list of texts")
    return tuple(response_in(f"{key}[{i}]", text, choices) for i, text in enumerate(values))


def person(row: Row) -> str:
    """Return who judged, "" if the row names nobody. Raises RowError."""
    named = [(key, row[key]) for key in _PEOPLE if key in row]
    if len({str(value) for _, value in named}) > 1:
        raise RowError(f"{named[0][0]} and {named[1][0]} name different people")
    return annotator_of(*named[0]) if named else ""


def annotator_of(key: str, value: Json) -> str:
    """Return an annotator's id. Raises RowError."""
    if isinstance(value, float) and value.is_integer():  # as pandas writes a column of integers that has a gap
        return str(int(value))
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RowError(f"{key}: is {kind_of(value)}, not text")
    return str(value)


def judged(row: Row, prompt: Turns, responses: Sequence[str], said: Said, annotator: str | None = None) -> Judgement:
    """Return a judgement with what its row says of it. Raises RowError."""
    for key in _CONTRADICTIONS:
        if row.get(key) not in (None, False, 0) and not isinstance(said, Equal):
            raise RowError(f"{key}: is {short(row[key])} beside a preference: leave out the one that is wrong")
    aspect = row.get("aspect", "")
    if not isinstance(aspect, str):
        raise RowError(f"aspect: is {kind_of(aspect)}, not text")
    keys = [annotator_of(key, row[key]) for key in _NAMED_JUDGEMENT if key in row]
    return Judgement(
        prompt, tuple(responses), said, person(row) if annotator is None else annotator, aspect, "/".join(keys)
    )


def different(texts: Sequence[str], names: str = "the responses") -> Sequence[str]:
    """Return both texts. Raises RowError if they are the same."""
    if texts[0] == texts[1]:
        raise RowError(f"{names} are the same")
    return texts


def by_score(row: Row, prompt: Turns, responses: Sequence[str], scores: Sequence[float]) -> Iterable[Judgement]:
    """Return what scores say: a ranking if they all differ, else a choice or a tie of each two."""
    if len(responses) < 2:
        raise RowError("holds no signal: it has fewer than two responses")
    if len(responses) > 2 and len(set(scores)) == len(scores):
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return [judged(row, prompt, responses, Ordered(tuple(order)))]
    found = []
    for first, second in combinations(range(len(responses)), 2):
        if responses[first] == responses[second]:
            continue
        two = (responses[first], responses[second])
        if scores[first] == scores[second]:
            found.append(judged(row, prompt, two, Equal(0, 1)))
        else:
            better = int(scores[second] > scores[first])
            found.append(judged(row, prompt, two, Preferred(better, 1 - better)))
    return found


def number(key: str, value: Json) -> float:
    """Return a number. Raises RowError."""
    if isinstance(value, str):  # of a CSV file, or of UltraFeedback
        try:
            value = float(value)
        except ValueError:
            raise RowError(f"{key}: is {short(value)}, not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise RowError(f"{key}: is {short(value)}, not a number")
    return float(value)


def index_of(row: Row, key: str, value: Json, count: int, choices: Choices) -> int:
    """Return an index of ``count`` responses, counted from 0. Raises RowError."""
    first = 1 if choices.indices == "one-based" else 0
    if row.get("index_base", first) != first:
        raise RowError(f"index_base: is {short(row['index_base'])}, and indices are read from {first}")
    if not is_int(value) or not first <= value < count + first:
        raise RowError(f"{key}: is {short(value)}, not an index of {count} responses (from {first})")
    return value - first


def index_marks(row: Row, value: Json, count: int) -> Iterable[str]:
    """Yield what an index says about where a file begins to count. ``index_base`` of 0 says it for the row."""
    if is_int(value) and not (row.get("index_base") == 0 and 0 <= value < count):
        if value == 0:
            yield "index 0"
        elif value == count:
            yield "index above the last"
        elif value > 0:
            yield "index"


def index_doubt(marks: Counter[str], choices: Choices) -> str:
    """Say that a file may count its indices from 0 or from 1."""
    if choices.indices or not (marks["index"] or marks["index above the last"]):
        return ""
    if not marks["index 0"]:
        return "no index is 0, so that they may count from 0 or from 1: say --one-based or --zero-based"
    if marks["index above the last"]:
        return (
            f"{marks['index 0']} indices are 0 and {marks['index above the last']} are as high as there are responses, "
            "so that they count from neither 0 nor 1: say --one-based or --zero-based, and the others are refused"
        )
    return ""
