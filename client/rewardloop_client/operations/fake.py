"""The OperationsService in memory, by the rules of the contract. `FakeRewardloop.loop` holds one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from google.protobuf.message import Message

from rewardloop.v1 import operations_pb2 as pb
from rewardloop_client._convert import timestamp
from rewardloop_client._errors import InvalidRequest, NoEvent, UnknownItem, Violation
from rewardloop_client.operations import calls

METHODS = {
    "status": calls.GET_STATUS,
    "rounds": calls.LIST_ROUNDS,
    "round": calls.GET_ROUND,
    "people": calls.LIST_PEOPLE,
    "set_muted": calls.SET_MUTED,
    "dead_letters": calls.LIST_DEAD_LETTERS,
    "requeue_dead_letter": calls.REQUEUE_DEAD_LETTER,
    "drop_dead_letter": calls.DROP_DEAD_LETTER,
    "reports": calls.LIST_REPORTS,
    "report": calls.GET_REPORT,
}

_MOST_REASON_CHARACTERS = 500


class FakeLoop:
    """What the fake says of the loop. Tests fill it; calls read and change it.

    Attributes:
        status: Everything but the models, which the fake adds.
        training: What the trainer says of each model.
        waiting_for: The sentence of each model.
        rounds: Newest first, whole.
        crowd: People, without mutes.
        letters: Oldest first.
        reports: Newest first.
        requeued: The ids of letters that were put back.
    """

    def __init__(self, models: Callable[[], list[pb.ModelStatus]]) -> None:
        self._models = models
        self._mutes: dict[tuple[str, str], pb.Mute] = {}
        self.status = pb.GetStatusResponse()
        self.training: dict[str, pb.TrainingStatus] = {}
        self.waiting_for: dict[str, str] = {}
        self.rounds: list[pb.Round] = []
        self.crowd = pb.Crowd()
        self.letters: list[pb.DeadLetter] = []
        self.reports: list[pb.GetReportResponse] = []
        self.requeued: list[str] = []

    def answers(self) -> Mapping[str, Callable[..., Message]]:
        """Return what answers each method, by its path."""
        return {
            calls.GET_STATUS: self._get_status,
            calls.LIST_ROUNDS: self._list_rounds,
            calls.GET_ROUND: self._get_round,
            calls.LIST_PEOPLE: lambda _: pb.ListPeopleResponse(crowd=self._known()),
            calls.SET_MUTED: self._set_muted,
            calls.LIST_DEAD_LETTERS: self._list_dead_letters,
            calls.REQUEUE_DEAD_LETTER: self._requeue,
            calls.DROP_DEAD_LETTER: self._drop,
            calls.LIST_REPORTS: lambda _: pb.ListReportsResponse(reports=[each.report for each in self.reports]),
            calls.GET_REPORT: self._get_report,
        }

    def _get_status(self, _: Message) -> pb.GetStatusResponse:
        answer = pb.GetStatusResponse()
        answer.CopyFrom(self.status)
        answer.time.CopyFrom(timestamp(time.time()))
        answer.queue.dead_letters = len(self.letters)
        for model in self._models():
            if model.model in self.training:
                model.training.CopyFrom(self.training[model.model])
            model.waiting_for = self.waiting_for.get(model.model, "")
            answer.models.append(model)
        return answer

    def _list_rounds(self, request: pb.ListRoundsRequest) -> pb.ListRoundsResponse:
        found = []
        for each in self.rounds:
            if request.model in ("", each.model):
                short = pb.Round()
                short.CopyFrom(each)
                short.ClearField("curves")
                short.ClearField("examples")
                found.append(short)
        return pb.ListRoundsResponse(rounds=found[: request.page_size or 50])

    def _get_round(self, request: pb.GetRoundRequest) -> pb.GetRoundResponse:
        for each in self.rounds:
            if (each.model, each.trainer_id, each.number) == (request.model, request.trainer_id, request.number):
                return pb.GetRoundResponse(round=each)
        raise UnknownItem("there is no such round")

    def _known(self) -> pb.Crowd:
        crowd = pb.Crowd()
        crowd.CopyFrom(self.crowd)
        left = dict(self._mutes)
        for person in crowd.people:
            if (mute := left.pop((person.caller, person.annotator_id), None)) is not None:
                person.mute.CopyFrom(mute)
        for (caller, annotator), mute in left.items():
            crowd.people.add(caller=caller, annotator_id=annotator, mute=mute)
        return crowd

    def _set_muted(self, request: pb.SetMutedRequest) -> pb.SetMutedResponse:
        if not request.annotator_id:
            raise InvalidRequest("annotator_id: missing", violations=[Violation("annotator_id", "missing")])
        if len(request.reason) > _MOST_REASON_CHARACTERS:
            raise InvalidRequest("reason: is too long", violations=[Violation("reason", "is too long")])
        who = request.caller, request.annotator_id
        if request.muted:
            self._mutes[who] = pb.Mute(reason=request.reason, decide_time=timestamp(time.time()))
        else:
            self._mutes.pop(who, None)
        return pb.SetMutedResponse()

    def _list_dead_letters(self, request: pb.ListDeadLettersRequest) -> pb.ListDeadLettersResponse:
        after = [each for each in self.letters if each.letter_id > request.after_letter_id]
        return pb.ListDeadLettersResponse(letters=after[: request.page_size or 50], total=len(self.letters))

    def _requeue(self, request: pb.RequeueDeadLetterRequest) -> pb.RequeueDeadLetterResponse:
        letter = self._letter(request.letter_id)
        if not letter.size_bytes:
            raise NoEvent("the letter has no event")
        self.letters.remove(letter)
        self.requeued.append(letter.letter_id)
        return pb.RequeueDeadLetterResponse(stream_id=letter.letter_id)

    def _drop(self, request: pb.DropDeadLetterRequest) -> pb.DropDeadLetterResponse:
        self.letters.remove(self._letter(request.letter_id))
        return pb.DropDeadLetterResponse()

    def _letter(self, letter_id: str) -> pb.DeadLetter:
        for each in self.letters:
            if each.letter_id == letter_id:
                return each
        raise UnknownItem("there is no such dead letter")

    def _get_report(self, request: pb.GetReportRequest) -> pb.GetReportResponse:
        for each in self.reports:
            if each.report.report_id == request.report_id:
                return each
        raise UnknownItem("there is no such report")
