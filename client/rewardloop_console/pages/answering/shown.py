"""A task as the page shows it: every text once as HTML and once as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from markupsafe import Markup

from rewardloop.v1 import common_pb2, labelling_pb2
from rewardloop_client import LabellingTask
from rewardloop_console.markdown import Texts
from rewardloop_console.pages.answering.verdict import in_words

_MOST_GRADES = 11
_PREVIEW_CHARACTERS = 90
_WORDS = {"choice": "Choose", "ranking": "Rank", "rating": "Rate", "edit": "Edit"}


@dataclass(frozen=True, slots=True)
class Text:
    """A text: `html` is safe to show, `source` is what a model reads."""

    html: Markup
    source: str

    @classmethod
    def of(cls, source: str, texts: Texts) -> Text:
        """Return a text of a model or a person; ``texts`` are those of its page."""
        return cls(texts.rendered(source), source)

    @property
    def preview(self) -> str:
        """The beginning in one line."""
        line = " ".join(self.source[: 4 * _PREVIEW_CHARACTERS].split())
        return line if len(line) <= _PREVIEW_CHARACTERS else f"{line[:_PREVIEW_CHARACTERS]}…"


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the prompt."""

    speaker: str
    text: Text


@dataclass(frozen=True, slots=True)
class Said:
    """What the labeller had said before taking it back, by which the form is filled in.

    Attributes:
        words: For the person; empty if nothing was taken back.
        order: Of a ranking.
        grades: By the index of the candidate.
        edited: The candidate that was edited.
        edited_text: Its new text.
        mode: The kind of answer.
        comment: The comment.
    """

    words: str = ""
    order: tuple[int, ...] = ()
    grades: dict[int, float] = field(default_factory=dict)
    edited: int = 0
    edited_text: str = ""
    mode: str = ""
    comment: str = ""

    @classmethod
    def of(cls, verdict: labelling_pb2.Verdict, comment: str) -> Said:
        """Return what a verdict said."""
        kind = verdict.WhichOneof("verdict") or ""
        return cls(
            words=in_words(verdict),
            order=tuple(verdict.ranking.order),
            grades={each.response: each.value for each in verdict.ratings.ratings},
            edited=verdict.edit.response,
            edited_text=verdict.edit.edited_text,
            mode={"tie": "choice", "ratings": "rating", "skip": ""}.get(kind, kind),
            comment=comment,
        )


@dataclass(frozen=True, slots=True)
class ShownTask:
    """A task as the template takes it.

    Attributes:
        task: The task.
        turns: The prompt.
        candidates: The responses, in the order that the service has drawn.
        modes: The kinds of answer with their words.
        mode: The one that is open first.
        grades: The grades of a short scale; empty if any number between its ends is one.
        order: The order in which the ranking lists the candidates.
        said: What was taken back.
    """

    task: LabellingTask
    turns: tuple[Turn, ...]
    candidates: tuple[Text, ...]
    modes: tuple[tuple[str, str], ...]
    mode: str
    grades: tuple[int, ...]
    order: tuple[int, ...]
    said: Said


def shown(task: LabellingTask, said: Said) -> ShownTask:
    """Return a task as the template takes it. Runs for long for long texts."""
    texts = Texts()
    turns = tuple(_turns(task.prompt, texts))
    candidates = tuple(Text.of(candidate, texts) for candidate in task.candidates)
    return ShownTask(
        task=task,
        turns=turns,
        candidates=candidates,
        modes=tuple((kind, _WORDS[kind]) for kind in task.kinds),
        mode=said.mode if said.mode in task.kinds else task.kinds[0],
        grades=_grades(task.scale),
        order=said.order or tuple(range(len(candidates))),
        said=said,
    )


def _turns(prompt: common_pb2.Prompt, texts: Texts) -> Iterator[Turn]:
    if prompt.WhichOneof("content") == "text":
        yield Turn("User", Text.of(prompt.text, texts))
        return
    for message in prompt.conversation.messages:
        speaker = message.role.capitalize() + (f" ({message.name})" if message.name else "")
        calls = "\n".join(f"{call.name}({call.arguments_json})" for call in message.tool_calls)
        if message.content:
            yield Turn(speaker, Text.of(message.content, texts))
        if calls:
            yield Turn(f"{speaker} calls", Text(Markup("<pre>{}</pre>").format(calls), calls))


def _grades(scale: tuple[float, float] | None) -> tuple[int, ...]:
    """Return the whole numbers of a scale, or none if they are too many or its ends are not whole."""
    low, high = scale or (0.5, 0.5)
    if low != int(low) or high != int(high) or high - low >= _MOST_GRADES:
        return ()
    return tuple(range(int(low), int(high) + 1))
