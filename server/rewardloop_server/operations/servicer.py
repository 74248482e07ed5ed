"""The OperationsService: what operators see of the loop, and what they decide about dead letters and people."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import grpc
import structlog

from rewardloop.formats.signals import key_of
from rewardloop.formats.storing.report_shelf import About, NoReport, ReportError, ReportShelf
from rewardloop.v1 import operations_pb2, operations_pb2_grpc
from rewardloop_server.calls.errors import InvalidRequest, ReportsUnavailable, UnknownItem, Violation
from rewardloop_server.doors.callers import PRESENT
from rewardloop_server.operations.dead_letters import DeadLetters
from rewardloop_server.operations.published import Published
from rewardloop_server.operations.status import LoopStatus

log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_PAGE, _MOST_PAGE = 50, 200
_MOST_REASON, _MOST_ID = 500, 512


class OperationsServicer(operations_pb2_grpc.OperationsServiceServicer):
    """Answers by the parts of this folder."""

    def __init__(self, status: LoopStatus, published: Published, letters: DeadLetters, reports: ReportShelf) -> None:
        self._status = status
        self._published = published
        self._letters = letters
        self._reports = reports

    async def GetStatus(
        self, request: operations_pb2.GetStatusRequest, context: Context
    ) -> operations_pb2.GetStatusResponse:
        return await self._status.read()

    async def ListRounds(
        self, request: operations_pb2.ListRoundsRequest, context: Context
    ) -> operations_pb2.ListRoundsResponse:
        rounds = await self._published.rounds(request.model)
        return operations_pb2.ListRoundsResponse(rounds=rounds[: _page_size(request.page_size)])

    async def GetRound(
        self, request: operations_pb2.GetRoundRequest, context: Context
    ) -> operations_pb2.GetRoundResponse:
        found = await self._published.round(request.model, request.trainer_id, request.number)
        if found is None:
            raise UnknownItem("there is no such round")
        return operations_pb2.GetRoundResponse(round=found)

    async def ListPeople(
        self, request: operations_pb2.ListPeopleRequest, context: Context
    ) -> operations_pb2.ListPeopleResponse:
        return operations_pb2.ListPeopleResponse(crowd=await self._published.crowd())

    async def SetMuted(
        self, request: operations_pb2.SetMutedRequest, context: Context
    ) -> operations_pb2.SetMutedResponse:
        problems = []
        if not 0 < len(request.annotator_id) <= _MOST_ID:
            problems.append(Violation("annotator_id", f"1 to {_MOST_ID} characters"))
        if len(request.caller) > _MOST_ID:
            problems.append(Violation("caller", f"at most {_MOST_ID} characters"))
        if len(request.reason) > _MOST_REASON:
            problems.append(Violation("reason", f"at most {_MOST_REASON} characters"))
        if problems:
            raise InvalidRequest(problems)
        person = key_of(request.caller, request.annotator_id)
        credential = PRESENT.get()
        if request.muted:
            await self._published.mute(person, credential.caller if credential else "", request.reason)
        else:
            await self._published.unmute(person)
        log.info("muted" if request.muted else "unmuted", caller=request.caller, reason=request.reason)
        return operations_pb2.SetMutedResponse()

    async def ListDeadLetters(
        self, request: operations_pb2.ListDeadLettersRequest, context: Context
    ) -> operations_pb2.ListDeadLettersResponse:
        return await self._letters.page(request.after_letter_id, _page_size(request.page_size))

    async def RequeueDeadLetter(
        self, request: operations_pb2.RequeueDeadLetterRequest, context: Context
    ) -> operations_pb2.RequeueDeadLetterResponse:
        place = await self._letters.requeue(request.letter_id)
        log.info("dead letter put back", letter=request.letter_id, stream_id=place)
        return operations_pb2.RequeueDeadLetterResponse(stream_id=place)

    async def DropDeadLetter(
        self, request: operations_pb2.DropDeadLetterRequest, context: Context
    ) -> operations_pb2.DropDeadLetterResponse:
        await self._letters.drop(request.letter_id)
        log.info("dead letter dropped", letter=request.letter_id)
        return operations_pb2.DropDeadLetterResponse()

    async def ListReports(
        self, request: operations_pb2.ListReportsRequest, context: Context
    ) -> operations_pb2.ListReportsResponse:
        try:
            found = await asyncio.to_thread(self._reports.newest)
        except ReportError as error:
            raise ReportsUnavailable("the model store does not answer") from error
        return operations_pb2.ListReportsResponse(reports=[_report(each) for each in found])

    async def GetReport(
        self, request: operations_pb2.GetReportRequest, context: Context
    ) -> operations_pb2.GetReportResponse:
        try:
            about, page = await asyncio.to_thread(self._reports.read, request.report_id)
        except NoReport as error:
            raise UnknownItem("there is no such report") from error
        except ReportError as error:
            raise ReportsUnavailable("the model store does not answer") from error
        return operations_pb2.GetReportResponse(report=_report(about), page=page)


def _page_size(asked: int) -> int:
    if asked > _MOST_PAGE:
        raise InvalidRequest([Violation("page_size", f"at most {_MOST_PAGE}")])
    return asked or _PAGE


def _report(about: About) -> operations_pb2.Report:
    report = operations_pb2.Report(
        report_id=about.report_id, kind=about.kind, title=about.title, lead=about.lead, figures=about.figures
    )
    report.time.FromNanoseconds(int(about.time * 1e9))
    return report
