"""Examples of why a candidate was refused, shortened for those who look at a round."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rewardloop.formats.signals import parts_of
from rewardloop.v1 import operations_pb2
from rewardloop_trainer.reports.parts import Sample

_MOST = 10
_MOST_CHARACTERS = 2_000


def example_messages(samples: Iterable[Sample]) -> list[operations_pb2.Example]:
    """Return the first samples as messages."""
    found = []
    for sample in samples:
        caller, event_id = parts_of(sample.signal)
        example = operations_pb2.Example(
            prompt=shortened(sample.prompt), note=", ".join(sample.marks), caller=caller, event_id=event_id
        )
        for side in sample.sides:
            message = example.sides.add(title=side.title, text=shortened(side.text))
            score = next(iter(side.figures.values()), math.nan)
            if math.isfinite(score):
                message.score = score
        found.append(example)
        if len(found) == _MOST:
            break
    return found


def shortened(text: str) -> str:
    """Return the text, or its beginning and a mark that it goes on."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
