"""The settings of `rewardloop feedback export`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, field_validator

from rewardloop.formats.vocabulary import SIGNAL_KINDS
from rewardloop.process.settings import ProcessSettings


class FeedbackExportSettings(ProcessSettings):
    """Writes signals of the ledger as rows that TRL and others read, or that `rewardloop feedback import` reads again.

    The trainer may run meanwhile. What a shape has no row for is left out and counted.
    """

    basic_settings = ("out", "shape", "form", "since", "until", "source", "tag", "kind", "dry_run", "archive")
    setting_groups = (("out", "What is written"), ("since", "Which signals"))

    out: str = Field(
        "-",
        description="file to write: .jsonl, .json, .csv or .parquet, all but the last also with .gz, .zst, .bz2 or .xz;"
        " '-': JSON lines on standard output",
    )
    shape: Literal["rows", "trl-preference", "trl-kto", "rankings", "sft"] = Field(
        "rows",
        description="rows: every signal, in shapes that an import reads again; trl-preference: prompt, chosen, rejected"
        " of choices and edits; trl-kto: prompt, completion, label of thumbs; rankings: prompt, responses, order;"
        " sft: prompt and completion of edits",
    )
    form: Literal["conversational", "plain"] = Field(
        "conversational",
        description="of shapes other than rows and rankings: lists of messages, or plain texts, which leave out prompts"
        " of several turns",
    )
    about: bool = Field(
        False,
        description="add who judged, when, source, tags and the signal's id to rows of all shapes; 'rows' has them",
    )
    replace: bool = Field(False, description="replace the file if it exists")
    csv_safe: bool = Field(
        False,
        description="put an apostrophe before texts of a .csv that a spreadsheet would run as formulas, as those that "
        "begin with '='; 'rewardloop feedback import --csv-safe' takes it away again",
    )
    dry_run: bool = Field(False, description="show what would be written, with examples, and write nothing")
    json_output: bool = Field(False, description="print the summary as JSON")

    archive: str = Field("rewardloop-data/ledger", description="the Parquet ledger: a path or an fsspec URL")
    since: str = Field("", description="arrived at this time or later: 2026-11-02, or 2026-11-02T10:00:00+01:00")
    until: str = Field("", description="arrived before this time")
    source: list[Literal["human", "llm_judge", "implicit"]] = Field([], description="of one of these sources")
    tag: list[str] = Field([], description="with this tag, key=value; may be repeated, and all must hold")
    kind: list[str] = Field([], description=f"of one of these kinds: {', '.join(SIGNAL_KINDS)}")
    aspect: list[str] = Field([], description="that these reward models learn from")

    @field_validator("since", "until")
    @classmethod
    def _is_time(cls, value: str) -> str:
        """Raises ValueError for a text that is no time."""
        if value:
            moment(value)
        return value

    @field_validator("kind")
    @classmethod
    def _are_kinds(cls, value: list[str]) -> list[str]:
        """Raises ValueError for a text that is no kind of signal."""
        for kind in value:
            if kind not in SIGNAL_KINDS:
                raise ValueError(f"{kind!r} is not one of {', '.join(SIGNAL_KINDS)}")
        return value

    @field_validator("tag")
    @classmethod
    def _are_pairs(cls, value: list[str]) -> list[str]:
        """Raises ValueError for a tag without a value."""
        for pair in value:
            if not all(pair.partition("=")[:2]):
                raise ValueError(f"{pair!r} is not of the form key=value")
        return value


def moment(text: str) -> float:
    """Return the Unix seconds of a date or time in ISO 8601; one without a zone is in UTC. Raises ValueError."""
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
