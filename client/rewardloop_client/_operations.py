"""What operators may ask: rounds, people, dead letters and reports.

Replies are messages of `rewardloop.v1.operations_pb2`. They are deep and made to be shown, so they come as they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar, cast

from google.protobuf.message import Message

from rewardloop.v1 import operations_pb2 as pb
from rewardloop_client import _convert as convert
from rewardloop_client._retry import Call

M = TypeVar("M", bound=Message)

_SERVICE = "/rewardloop.v1.OperationsService/"
GET_STATUS = f"{_SERVICE}GetStatus"
LIST_ROUNDS = f"{_SERVICE}ListRounds"
GET_ROUND = f"{_SERVICE}GetRound"
LIST_PEOPLE = f"{_SERVICE}ListPeople"
SET_MUTED = f"{_SERVICE}SetMuted"
LIST_DEAD_LETTERS = f"{_SERVICE}ListDeadLetters"
REQUEUE_DEAD_LETTER = f"{_SERVICE}RequeueDeadLetter"
DROP_DEAD_LETTER = f"{_SERVICE}DropDeadLetter"
LIST_REPORTS = f"{_SERVICE}ListReports"
GET_REPORT = f"{_SERVICE}GetReport"

# Methods that change nothing when they are called twice. A second removal of a letter fails with NOT_FOUND.
REPEATABLE = (GET_STATUS, LIST_ROUNDS, GET_ROUND, LIST_PEOPLE, SET_MUTED, LIST_DEAD_LETTERS, LIST_REPORTS, GET_REPORT)

# Carries a call out within so many seconds; None: within those of the client.
Run: TypeAlias = Callable[[Call[Any], "float | None"], Any]
RunAio: TypeAlias = Callable[[Call[Any], "float | None"], Awaitable[Any]]


def _call(path: str, request: Message, response_type: type[M]) -> Call[M]:
    return Call(path, request, response_type, lambda response: cast(M, response), path in REPEATABLE)


def get_status() -> Call[pb.GetStatusResponse]:
    return _call(GET_STATUS, pb.GetStatusRequest(), pb.GetStatusResponse)


def list_rounds(model: str, count: int) -> Call[pb.ListRoundsResponse]:
    request = pb.ListRoundsRequest(model=convert.text_field("model", model), page_size=count)
    return _call(LIST_ROUNDS, request, pb.ListRoundsResponse)


def get_round(model: str, trainer_id: str, number: int) -> Call[pb.GetRoundResponse]:
    with convert.building("number"):
        request = pb.GetRoundRequest(
            model=convert.text_field("model", model),
            trainer_id=convert.text_field("trainer_id", trainer_id),
            number=number,
        )
    return _call(GET_ROUND, request, pb.GetRoundResponse)


def list_people() -> Call[pb.ListPeopleResponse]:
    return _call(LIST_PEOPLE, pb.ListPeopleRequest(), pb.ListPeopleResponse)


def set_muted(caller: str, annotator_id: str, muted: bool, reason: str) -> Call[pb.SetMutedResponse]:
    request = pb.SetMutedRequest(
        caller=convert.text_field("caller", caller),
        annotator_id=convert.text_field("annotator_id", annotator_id),
        muted=muted,
        reason=convert.text_field("reason", reason),
    )
    return _call(SET_MUTED, request, pb.SetMutedResponse)


def list_dead_letters(after: str, count: int) -> Call[pb.ListDeadLettersResponse]:
    request = pb.ListDeadLettersRequest(after_letter_id=convert.text_field("after_letter_id", after), page_size=count)
    return _call(LIST_DEAD_LETTERS, request, pb.ListDeadLettersResponse)


def requeue_dead_letter(letter_id: str) -> Call[pb.RequeueDeadLetterResponse]:
    request = pb.RequeueDeadLetterRequest(letter_id=convert.text_field("letter_id", letter_id))
    return _call(REQUEUE_DEAD_LETTER, request, pb.RequeueDeadLetterResponse)


def drop_dead_letter(letter_id: str) -> Call[pb.DropDeadLetterResponse]:
    request = pb.DropDeadLetterRequest(letter_id=convert.text_field("letter_id", letter_id))
    return _call(DROP_DEAD_LETTER, request, pb.DropDeadLetterResponse)


def list_reports() -> Call[pb.ListReportsResponse]:
    return _call(LIST_REPORTS, pb.ListReportsRequest(), pb.ListReportsResponse)


def get_report(report_id: str) -> Call[pb.GetReportResponse]:
    request = pb.GetReportRequest(report_id=convert.text_field("report_id", report_id))
    return _call(GET_REPORT, request, pb.GetReportResponse)


class Operations:
    """The OperationsService, as `RewardloopClient.operations`. Methods raise RewardloopError if their calls fail."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def status(self, *, timeout_s: float | None = None) -> pb.GetStatusResponse:
        """Return versions, what each model waits for, the queue of signals, requests and alerts."""
        return cast(pb.GetStatusResponse, self._run(get_status(), timeout_s))

    def rounds(self, model: str = "", *, count: int = 50, timeout_s: float | None = None) -> list[pb.Round]:
        """Return the latest rounds, newest first, without curves and examples; of all models if none is named."""
        return list(self._run(list_rounds(model, count), timeout_s).rounds)

    def round(self, model: str, trainer_id: str, number: int, *, timeout_s: float | None = None) -> pb.Round:
        """Return one round with its curves and examples. Raises NotFound."""
        return cast(pb.Round, self._run(get_round(model, trainer_id, number), timeout_s).round)

    def people(self, *, timeout_s: float | None = None) -> pb.Crowd:
        """Return what the trainer's last round knows of the people, and who is muted."""
        return cast(pb.Crowd, self._run(list_people(), timeout_s).crowd)

    def set_muted(
        self, annotator_id: str, muted: bool, *, caller: str = "", reason: str = "", timeout_s: float | None = None
    ) -> None:
        """Give a person's signals the weight 0 in rounds that begin from now on, or take that back.

        Args:
            annotator_id: The person.
            muted: Whether they are muted.
            caller: Whose annotator it is; empty without authentication.
            reason: Why, for those who look at it later.
            timeout_s: Seconds for the call with all its attempts; None for the client's own.
        """
        self._run(set_muted(caller, annotator_id, muted, reason), timeout_s)

    def dead_letters(
        self, *, after: str = "", count: int = 50, timeout_s: float | None = None
    ) -> pb.ListDeadLettersResponse:
        """Return dead letters, oldest first, and how many there are."""
        return cast(pb.ListDeadLettersResponse, self._run(list_dead_letters(after, count), timeout_s))

    def requeue_dead_letter(self, letter_id: str, *, timeout_s: float | None = None) -> str:
        """Append a letter's event to the stream again, and return its place there. The call is never repeated."""
        return str(self._run(requeue_dead_letter(letter_id), timeout_s).stream_id)

    def drop_dead_letter(self, letter_id: str, *, timeout_s: float | None = None) -> None:
        """Remove a letter for good. The call is never repeated."""
        self._run(drop_dead_letter(letter_id), timeout_s)

    def reports(self, *, timeout_s: float | None = None) -> list[pb.Report]:
        """Return the published reports, newest first."""
        return list(self._run(list_reports(), timeout_s).reports)

    def report(self, report_id: str, *, timeout_s: float | None = None) -> pb.GetReportResponse:
        """Return a report with its page. Raises NotFound."""
        return cast(pb.GetReportResponse, self._run(get_report(report_id), timeout_s))


class AsyncOperations:
    """The OperationsService, as `AsyncRewardloopClient.operations`. See `Operations`."""

    def __init__(self, run: RunAio) -> None:
        self._run = run

    async def status(self, *, timeout_s: float | None = None) -> pb.GetStatusResponse:
        """See `Operations.status`."""
        return cast(pb.GetStatusResponse, await self._run(get_status(), timeout_s))

    async def rounds(self, model: str = "", *, count: int = 50, timeout_s: float | None = None) -> list[pb.Round]:
        """See `Operations.rounds`."""
        return list((await self._run(list_rounds(model, count), timeout_s)).rounds)

    async def round(self, model: str, trainer_id: str, number: int, *, timeout_s: float | None = None) -> pb.Round:
        """See `Operations.round`."""
        return cast(pb.Round, (await self._run(get_round(model, trainer_id, number), timeout_s)).round)

    async def people(self, *, timeout_s: float | None = None) -> pb.Crowd:
        """See `Operations.people`."""
        return cast(pb.Crowd, (await self._run(list_people(), timeout_s)).crowd)

    async def set_muted(
        self, annotator_id: str, muted: bool, *, caller: str = "", reason: str = "", timeout_s: float | None = None
    ) -> None:
        """See `Operations.set_muted`."""
        await self._run(set_muted(caller, annotator_id, muted, reason), timeout_s)

    async def dead_letters(
        self, *, after: str = "", count: int = 50, timeout_s: float | None = None
    ) -> pb.ListDeadLettersResponse:
        """See `Operations.dead_letters`."""
        return cast(pb.ListDeadLettersResponse, await self._run(list_dead_letters(after, count), timeout_s))

    async def requeue_dead_letter(self, letter_id: str, *, timeout_s: float | None = None) -> str:
        """See `Operations.requeue_dead_letter`."""
        return str((await self._run(requeue_dead_letter(letter_id), timeout_s)).stream_id)

    async def drop_dead_letter(self, letter_id: str, *, timeout_s: float | None = None) -> None:
        """See `Operations.drop_dead_letter`."""
        await self._run(drop_dead_letter(letter_id), timeout_s)

    async def reports(self, *, timeout_s: float | None = None) -> list[pb.Report]:
        """See `Operations.reports`."""
        return list((await self._run(list_reports(), timeout_s)).reports)

    async def report(self, report_id: str, *, timeout_s: float | None = None) -> pb.GetReportResponse:
        """See `Operations.report`."""
        return cast(pb.GetReportResponse, await self._run(get_report(report_id), timeout_s))
