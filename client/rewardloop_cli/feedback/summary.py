"""Says in lines how a file is read, with examples as they will be learned."""

from __future__ import annotations

from collections.abc import Iterator

from rewardloop_data.judgements import Approved, Edited, Equal, Graded, Judgement, Ordered, Preferred
from rewardloop_data.rows import Turns
from rewardloop_data.survey import Survey

_WIDTH = 100
_KINDS = {
    "Preferred": "choice",
    "Equal": "tie",
    "Ordered": "ranking",
    "Approved": "thumb",
    "Graded": "rating",
    "Edited": "edit",
}


def summary_of(name: str, found: Survey, import_id: str) -> list[str]:
    """Return the lines of a summary."""
    shapes = ", ".join(shape.name for shape in found.reading.shapes if shape.read is not None)
    kinds = ", ".join(counted(count, _KINDS[kind]) for kind, count in found.signals.most_common()) or "no signal"
    named = f" (import {import_id})" if import_id else ""
    lines = [f"{name}: {counted(found.rows, 'row')}, read as {shapes}: {kinds}{named}"]
    if found.refused:
        hold = "1 row holds" if found.refused == 1 else f"{found.refused} rows hold"
        lines.append(f"{name}: {hold} no signal, such as line {found.reasons[0]}")
    if found.repeats and not found.reading.choices.counts_copies:
        lines.append(
            f"{name}: {found.repeats} judgements are equal to an earlier one, and neither names who judged: they count "
            "once; --count-copies counts each"
        )
    for number, judgement in enumerate(found.examples, start=1):
        lines += [f"  example {number}: {short_text(prompt_text(judgement.prompt))}", *_said(judgement)]
    return lines


def counted(number: int, name: str) -> str:
    """Return a number and the noun that it counts. The noun's plural ends in s."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _said(judgement: Judgement) -> Iterator[str]:
    texts = [short_text(text) for text in judgement.responses]
    by = f" (by {judgement.annotator})" if judgement.annotator else ""
    match said := judgement.said:
        case Preferred():
            strength = "" if said.strength is None else f" (strength {said.strength:.2f})"
            yield f"    better{strength}{by}: {texts[said.chosen]}"
            yield f"    worse: {texts[said.rejected]}"
        case Equal():
            yield f"    equal{by}: {texts[said.first]}"
            yield f"    equal: {texts[said.second]}"
        case Ordered():
            for place, index in enumerate(said.order, start=1):
                yield f"    place {place}{by}: {texts[index]}"
        case Approved():
            yield f"    thumb {'up' if said.up else 'down'}{by}: {texts[0]}"
        case Edited():
            yield f"    edited{by}: {short_text(said.text)}"
            yield f"    instead of: {texts[0]}"
        case Graded():
            yield f"    {said.value:g} between {said.minimum:g} and {said.maximum:g}{by}: {texts[0]}"


def prompt_text(prompt: Turns) -> str:
    """Return the turns of a prompt in one line."""
    return " | ".join(f"{turn.role}: {turn.content}" for turn in prompt)


def short_text(text: str) -> str:
    """Return a text in one line, without its middle if it is long."""
    shown = repr(text)[1:-1]
    return shown if len(shown) <= _WIDTH else f"{shown[: _WIDTH - 30]}...{shown[-27:]}"
