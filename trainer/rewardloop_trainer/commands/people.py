"""How far the people of a file are trusted, for the commands that train one model by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import structlog

from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.annotators.crowd_file import CrowdFile
from rewardloop_trainer.data.weights.trust import Trust
from rewardloop_trainer.rounds.round_trust import AskModel, know_people

log = structlog.get_logger()

TrustBy: TypeAlias = Literal["auto", "votes", "off"]

_AT_ONCE = 1_000


class People:
    """The people of a file, by their signals."""

    def __init__(self, file: CrowdFile) -> None:
        self._file = file
        self._waiting: list[feedback_pb2.FeedbackEvent] = []

    def add(self, event: feedback_pb2.FeedbackEvent) -> None:
        """Take in a signal. One that names nobody is left out."""
        if event.annotator_id:
            self._waiting.append(event)
        if len(self._waiting) == _AT_ONCE:
            self._flush()

    def trust(self, by: TrustBy, ask_model: AskModel | None = None) -> Trust:
        """Return how far they are trusted, as a round of the trainer would.

        Args:
            by: By each other's votes; by a model too if few votes can be compared (auto); or not at all.
            ask_model: Asks that model; see `trust_of_round`. None: there is none.
        """
        self._flush()
        if by == "off":
            return Trust()
        crowd = know_people(self._file, ask_model if by == "auto" else None)
        people = crowd.reliability.people
        if people:
            log.info("people", people=len(people), compared=round(crowd.reliability.compared, 3), muted=crowd.muted)
        return crowd.trust

    def _flush(self) -> None:
        if self._waiting:
            self._file.add(self._waiting)
            self._waiting = []


@contextmanager
def people_in_memory() -> Iterator[People]:
    """Open people of whom nothing is kept on disk."""
    with CrowdFile(None) as file:
        yield People(file)
