"""The methods of the OperationsService as calls: rounds, people, dead letters and reports.

Replies are messages of `rewardloop.v1.operations_pb2`. They are deep and made to be shown, so they come as they are.
"""

from __future__ import annotations

from typing import TypeVar, cast

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
