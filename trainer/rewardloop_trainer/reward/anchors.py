"""The (prompt, response) pairs on which versions are calibrated: where they come from, and where they are kept.

A version keeps its anchors beside its model, in ``anchors.jsonl``, and the versions that are trained from it use the
same ones, on whichever machine they are trained. Anchors that were chosen from signals are texts of users: they stay in
the trainer's work directory, and no version holds them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import structlog

from rewardloop.formats.messages import MessageError, Turn, message_of, turn_of
from rewardloop.formats.text import Encoded, Encoder, RefusedConversation
from rewardloop_data.rows import RowError, text_of, turns_of
from rewardloop_data.source_file import SourceFile, UnreadableFile
from rewardloop_trainer.data.preferences import Prompt, Record
from rewardloop_trainer.reward.examples import responses_of

log = structlog.get_logger()

ANCHORS = "anchors.jsonl"
MAX_ANCHORS = 256
LEAST_ANCHORS = 64  # fewer move a threshold too far from version to version: docs/how-to/own-models.md has the figures
_SHIPPED = Path(__file__).with_name("shipped_anchors.jsonl")

Source: TypeAlias = Literal["given", "shipped", "chosen from signals", "of the work directory"]


class UnusableAnchors(ValueError):
    """Raised when a scale cannot be fixed on the anchors."""


class CorruptAnchors(UnusableAnchors):
    """Raised when the anchor file cannot be read. Replacing it would change the meaning of scores."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A prompt and response whose score fixes the scale."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class AnchorSet:
    """The anchors of a line of versions.

    Attributes:
        anchors: The pairs.
        source: Who chose them.
        least: How many distinct ones a model has to read before its scores are standardised on them.
    """

    anchors: tuple[Anchor, ...]
    source: Source
    least: int = LEAST_ANCHORS

    @property
    def is_kept_with_version(self) -> bool:
        """Whether a version holds the anchors, so that its descendants find them."""
        return self.source in ("given", "shipped")

    def __str__(self) -> str:
        digest = hashlib.sha256(_to_jsonl(self.anchors).encode()).hexdigest()
        return f"{len(self.anchors)} {self.source} (sha256 {digest[:12]})"


def anchors_to_export(path: Path | None) -> AnchorSet:
    """Return the anchors of a user's file, or the shipped ones if there is no file. Raises `CorruptAnchors`."""
    return shipped_anchors() if path is None else AnchorSet(read_anchors(path), "given")


def check_anchors(path: Path | None, anchors: AnchorSet, encoder: Encoder) -> None:
    """Raise `UnusableAnchors` if the model reads too few distinct anchors of a user's file."""
    if path is None:
        return
    distinct = distinct_count(readable(encoder, anchors.anchors))
    if distinct < anchors.least:
        raise UnusableAnchors(
            f"{path}: the model reads {distinct} distinct anchors of {len(anchors.anchors)}, and a scale needs "
            f"{anchors.least} or more: add some, or leave out --anchors to use those that are shipped"
        )


def anchors_of_round(work_dir: Path, live: Path | None, records: Iterable[Record], encoder: Encoder) -> AnchorSet:
    """Return the anchors of the version that a round trains from, so that the new version gets the same scale.

    They are the live version's own, or else those in ``work_dir``. If neither has any, they are chosen from the records
    and stored in ``work_dir`` for good; with fewer than `LEAST_ANCHORS` of them the shipped ones are used.

    Args:
        work_dir: The trainer's directory.
        live: Files of the live version; None if there is none.
        records: The signals that the round learns from.
        encoder: The model's tokenizer and text layout.

    Raises:
        CorruptAnchors: If the file cannot be read.
    """
    path = work_dir / ANCHORS
    if live is not None and (live / ANCHORS).exists():
        anchors = read_anchors(live / ANCHORS)
        if path.exists() and read_anchors(path) != anchors:
            log.warning("the live version's anchors are used, and others are ignored", ignored=str(path))
        shipped = shipped_anchors()
        return shipped if anchors == shipped.anchors else AnchorSet(anchors, "given")
    if path.exists():  # a scale that was fixed on few is kept: its versions are live
        return AnchorSet(read_anchors(path), "of the work directory", least=2)
    chosen = choose_anchors(records)
    if distinct_count(readable(encoder, chosen)) < LEAST_ANCHORS:
        return shipped_anchors()
    write_anchors(path, chosen)
    return AnchorSet(chosen, "chosen from signals", least=2)


def shipped_anchors() -> AnchorSet:
    """Return the anchors that are part of this package: 32 everyday prompts with a good, a terse and a bad answer."""
    return AnchorSet(read_anchors(_SHIPPED), "shipped")


def choose_anchors(records: Iterable[Record], limit: int = MAX_ANCHORS) -> tuple[Anchor, ...]:
    """Choose at most ``limit`` distinct anchors, spread over the prompts. The order of the records does not matter."""
    by_prompt: dict[Prompt, set[str]] = {}
    for record in records:
        by_prompt.setdefault(record.prompt, set()).update(responses_of(record))
    ranked = [
        (place, _hash(prompt, response), Anchor(prompt, response))
        for prompt, responses in by_prompt.items()
        for place, response in enumerate(sorted(responses, key=lambda r: _hash(prompt, r)))
    ]
    ranked.sort(key=lambda entry: entry[:2])
    return tuple(anchor for _, _, anchor in ranked[:limit])


def readable(encoder: Encoder, anchors: Sequence[Anchor]) -> list[Encoded]:
    """Return the sequences of the anchors for which the text layout has a form."""
    found = []
    for anchor in anchors:
        try:
            found.append(encoder.pair(anchor.prompt, anchor.response))
        except RefusedConversation:  # the next versions have the same layout and leave it out, too
            continue
    return found


def distinct_count(sequences: Sequence[Encoded]) -> int:
    """Return the number of different sequences. Texts that were shortened to the same tokens count once."""
    return len({tuple(s.ids) for s in sequences})


def read_anchors(path: Path) -> tuple[Anchor, ...]:
    """Read rows ``{"prompt", "response"}``; a prompt is a text or messages. Raises `CorruptAnchors`."""
    anchors = []
    number = 0
    try:
        for line in SourceFile.of(path).lines():
            number = line.number
            row: Any = line.value()
            if not isinstance(row, dict) or not {"prompt", "response"} <= row.keys():
                raise RowError("is not an object with a prompt and a response")
            prompt, response = row["prompt"], row["response"]
            if not isinstance(response, str):
                text_of("response", response)
            anchors.append(Anchor(_turns(prompt), response))
    except UnreadableFile as error:
        raise CorruptAnchors(str(error)) from error
    except RowError as error:
        raise CorruptAnchors(f"{path}, row {number}: {error}") from error
    return tuple(anchors)


def _turns(prompt: Any) -> Prompt:
    """Return the turns of a prompt. Messages are taken as `write_anchors` wrote them, blank ones too."""
    if not isinstance(prompt, list) or not prompt:
        return turns_of("prompt", prompt)
    return tuple(_turn(f"prompt[{i}]", message) for i, message in enumerate(prompt))


def _turn(field: str, message: Any) -> Turn:
    if not isinstance(message, dict):
        raise RowError(f"{field}: is not a {{role, content}} message")
    try:
        return turn_of(message)
    except MessageError as error:
        raise RowError(f"{field}{f'.{error.field}' if error.field else ''}: {error.problem}") from error


def write_anchors(path: Path, anchors: Iterable[Anchor]) -> None:
    """Write the anchor file. A killed process leaves the old file or none, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".anchors-", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_to_jsonl(anchors))
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


def _to_jsonl(anchors: Iterable[Anchor]) -> str:
    rows = [{"prompt": [message_of(t) for t in anchor.prompt], "response": anchor.response} for anchor in anchors]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _hash(prompt: Prompt, response: str) -> bytes:
    return hashlib.sha256(repr((prompt, response)).encode()).digest()
