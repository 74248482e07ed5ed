"""The OperationsService, as both clients offer it. Replies are messages of `rewardloop.v1.operations_pb2`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

from rewardloop.v1 import operations_pb2 as pb
from rewardloop_client._retry import Call
from rewardloop_client.operations import calls

# Carries a call out within so many seconds; None: within those of the client.
Run: TypeAlias = Callable[[Call[Any], "float | None"], Any]
RunAio: TypeAlias = Callable[[Call[Any], "float | None"], Awaitable[Any]]


class Operations:
    """The OperationsService, as `RewardloopClient.operations`. Methods raise RewardloopError if their calls fail."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def status(self, *, timeout_s: float | None = None) -> pb.GetStatusResponse:
        """Return versions, what each model waits for, the queue of signals, requests and alerts."""
        return cast(pb.GetStatusResponse, self._run(calls.get_status(), timeout_s))

    def rounds(self, model: str = "", *, count: int = 50, timeout_s: float | None = None) -> list[pb.Round]:
        """Return the latest rounds, newest first, without curves and examples; of all models if none is named."""
        return list(self._run(calls.list_rounds(model, count), timeout_s).rounds)

    def round(self, model: str, trainer_id: str, number: int, *, timeout_s: float | None = None) -> pb.Round:
        """Return one round with its curves and examples. Raises NotFound."""
        return cast(pb.Round, self._run(calls.get_round(model, trainer_id, number), timeout_s).round)

    def people(self, *, timeout_s: float | None = None) -> pb.Crowd:
        """Return what the trainer's last round knows of the people, and who is muted."""
        return cast(pb.Crowd, self._run(calls.list_people(), timeout_s).crowd)

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
        self._run(calls.set_muted(caller, annotator_id, muted, reason), timeout_s)

    def dead_letters(
        self, *, after: str = "", count: int = 50, timeout_s: float | None = None
    ) -> pb.ListDeadLettersResponse:
        """Return dead letters, oldest first, and how many there are."""
        return cast(pb.ListDeadLettersResponse, self._run(calls.list_dead_letters(after, count), timeout_s))

    def requeue_dead_letter(self, letter_id: str, *, timeout_s: float | None = None) -> str:
        """Append a letter's event to the stream again, and return its place there. The call is never repeated."""
        return str(self._run(calls.requeue_dead_letter(letter_id), timeout_s).stream_id)

    def drop_dead_letter(self, letter_id: str, *, timeout_s: float | None = None) -> None:
        """Remove a letter for good. The call is never repeated."""
        self._run(calls.drop_dead_letter(letter_id), timeout_s)

    def reports(self, *, timeout_s: float | None = None) -> list[pb.Report]:
        """Return the published reports, newest first."""
        return list(self._run(calls.list_reports(), timeout_s).reports)

    def report(self, report_id: str, *, timeout_s: float | None = None) -> pb.GetReportResponse:
        """Return a report with its page. Raises NotFound."""
        return cast(pb.GetReportResponse, self._run(calls.get_report(report_id), timeout_s))


class AsyncOperations:
    """The OperationsService, as `AsyncRewardloopClient.operations`. See `Operations`."""

    def __init__(self, run: RunAio) -> None:
        self._run = run

    async def status(self, *, timeout_s: float | None = None) -> pb.GetStatusResponse:
        """See `Operations.status`."""
        return cast(pb.GetStatusResponse, await self._run(calls.get_status(), timeout_s))

    async def rounds(self, model: str = "", *, count: int = 50, timeout_s: float | None = None) -> list[pb.Round]:
        """See `Operations.rounds`."""
        return list((await self._run(calls.list_rounds(model, count), timeout_s)).rounds)

    async def round(self, model: str, trainer_id: str, number: int, *, timeout_s: float | None = None) -> pb.Round:
        """See `Operations.round`."""
        return cast(pb.Round, (await self._run(calls.get_round(model, trainer_id, number), timeout_s)).round)

    async def people(self, *, timeout_s: float | None = None) -> pb.Crowd:
        """See `Operations.people`."""
        return cast(pb.Crowd, (await self._run(calls.list_people(), timeout_s)).crowd)

    async def set_muted(
        self, annotator_id: str, muted: bool, *, caller: str = "", reason: str = "", timeout_s: float | None = None
    ) -> None:
        """See `Operations.set_muted`."""
        await self._run(calls.set_muted(caller, annotator_id, muted, reason), timeout_s)

    async def dead_letters(
        self, *, after: str = "", count: int = 50, timeout_s: float | None = None
    ) -> pb.ListDeadLettersResponse:
        """See `Operations.dead_letters`."""
        return cast(pb.ListDeadLettersResponse, await self._run(calls.list_dead_letters(after, count), timeout_s))

    async def requeue_dead_letter(self, letter_id: str, *, timeout_s: float | None = None) -> str:
        """See `Operations.requeue_dead_letter`."""
        return str((await self._run(calls.requeue_dead_letter(letter_id), timeout_s)).stream_id)

    async def drop_dead_letter(self, letter_id: str, *, timeout_s: float | None = None) -> None:
        """See `Operations.drop_dead_letter`."""
        await self._run(calls.drop_dead_letter(letter_id), timeout_s)

    async def reports(self, *, timeout_s: float | None = None) -> list[pb.Report]:
        """See `Operations.reports`."""
        return list((await self._run(calls.list_reports(), timeout_s)).reports)

    async def report(self, report_id: str, *, timeout_s: float | None = None) -> pb.GetReportResponse:
        """See `Operations.report`."""
        return cast(pb.GetReportResponse, await self._run(calls.get_report(report_id), timeout_s))
