"""Real gRPC servers in this process for the client's tests, with servicers that do what a test tells them."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from rewardloop.v1 import (
    access_pb2,
    access_pb2_grpc,
    common_pb2,
    feedback_pb2,
    feedback_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
)

REASON_CODES = {
    "INVALID_REQUEST": code_pb2.INVALID_ARGUMENT,
    "QUEUE_FULL": code_pb2.RESOURCE_EXHAUSTED,
    "STORE_FULL": code_pb2.RESOURCE_EXHAUSTED,
    "TOO_MANY_SIGNALS": code_pb2.RESOURCE_EXHAUSTED,
    "EVENT_ID_CONFLICT": code_pb2.ALREADY_EXISTS,
    "REPLAYED_SIGNAL": code_pb2.ALREADY_EXISTS,
    "LEASE_ANSWERED": code_pb2.ALREADY_EXISTS,
    "UNKNOWN_PROJECT": code_pb2.NOT_FOUND,
    "UNKNOWN_LEASE": code_pb2.NOT_FOUND,
    "UNKNOWN_GUIDELINES": code_pb2.NOT_FOUND,
    "TASK_TAKEN": code_pb2.FAILED_PRECONDITION,
    "TASK_RETRACTED": code_pb2.FAILED_PRECONDITION,
    "NOTHING_TO_UNDO": code_pb2.FAILED_PRECONDITION,
    "QUOTA_SPENT": code_pb2.RESOURCE_EXHAUSTED,
    "AUDIT_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "NO_CREDENTIALS": code_pb2.UNAUTHENTICATED,
    "WRONG_CREDENTIALS": code_pb2.UNAUTHENTICATED,
    "EXPIRED_CREDENTIALS": code_pb2.UNAUTHENTICATED,
    "NOT_ALLOWED": code_pb2.PERMISSION_DENIED,
    "NO_MODEL": code_pb2.UNAVAILABLE,
    "DRAINING": code_pb2.UNAVAILABLE,
    "REDIS_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "POLICY_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "DEADLINE_PASSED": code_pb2.DEADLINE_EXCEEDED,
    "UNKNOWN_VERSION": code_pb2.NOT_FOUND,
    "UNKNOWN_GENERATION": code_pb2.NOT_FOUND,
    "CORRUPT_VERSION": code_pb2.FAILED_PRECONDITION,
    "NOTHING_TO_ROLL_BACK": code_pb2.FAILED_PRECONDITION,
    "UNSAFE_VERSION": code_pb2.FAILED_PRECONDITION,
    "UNTRUSTED_VERSION": code_pb2.FAILED_PRECONDITION,
    "NOT_LOADABLE": code_pb2.FAILED_PRECONDITION,
    "INTERNAL": code_pb2.INTERNAL,
}


def status(reason: str, *, retry_after_s: float | None = None, field: str = "") -> status_pb2.Status:
    """A status as the server sends it."""
    made = status_pb2.Status(code=REASON_CODES[reason], message=f"because {reason}")
    made.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="rewardloop"))
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
        made.details.add().Pack(retry)
    if field:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=field, description="is wrong")
        made.details.add().Pack(bad)
    return made


class Services(
    reward_pb2_grpc.RewardServiceServicer,
    feedback_pb2_grpc.FeedbackServiceServicer,
    policy_pb2_grpc.PolicyServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    operations_pb2_grpc.OperationsServiceServicer,
    access_pb2_grpc.AccessServiceServicer,
):
    """Answers with ``name`` as model version.

    ``failures``: statuses (or what to do) for the next calls. A batch with an event that ``is_withheld`` is recorded,
    and its answer is held back while the caller waits.
    """

    def __init__(self, name: str = "1") -> None:
        self.name = name
        self.failures: list[status_pb2.Status | Callable[[grpc.ServicerContext], None]] = []
        self.calls: list[str] = []
        self.seen: dict[str, feedback_pb2.FeedbackEvent] = {}
        self.event_failures: dict[str, list[status_pb2.Status]] = {}
        self.batch_sizes: list[int] = []
        self.is_withheld: Callable[[feedback_pb2.FeedbackEvent], bool] = lambda event: False
        self.active = ["1"]
        self.roles: list[Any] = []
        self.peers: set[str] = set()
        self.metadata: list[dict[str, str | bytes]] = []
        self.seconds_left: list[float | None] = []
        self.health = health.HealthServicer()

    def _begin(self, method: str, context: grpc.ServicerContext) -> None:
        self.calls.append(method)
        self.peers.add(context.peer())
        self.metadata.append(dict(context.invocation_metadata()))
        self.seconds_left.append(context.time_remaining())
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, status_pb2.Status):
                context.abort_with_status(rpc_status.to_status(failure))
            else:
                failure(context)

    def _scored(self, request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        return reward_pb2.ScoreResponse(
            scores=[reward_pb2.ResponseScore(score=len(r), logit=2.0 * len(r)) for r in request.responses],
            model_version=common_pb2.ModelVersion(version=self.name, digest="d"),
        )

    def Score(self, request: Any, context: Any) -> Any:
        self._begin("Score", context)
        return self._scored(request)

    def ScoreBatch(self, request: Any, context: Any) -> Any:
        self._begin("ScoreBatch", context)
        items = [
            reward_pb2.ScoreBatchItem(result=self._scored(group))
            if all(group.responses)
            else reward_pb2.ScoreBatchItem(error=status("INVALID_REQUEST", field="responses"))
            for group in request.groups
        ]
        return reward_pb2.ScoreBatchResponse(items=items)

    def ScoreStream(self, requests: Any, context: Any) -> Iterator[Any]:
        """Replies in pairs, the later request first."""
        self._begin("ScoreStream", context)
        held = None
        for request in requests:
            reply = reward_pb2.ScoreStreamResponse(request_id=request.request_id, result=self._scored(request.request))
            if held is None:
                held = reply
            else:
                yield reply
                yield held
                held = None
        if held is not None:
            yield held

    def _recorded(self, event: feedback_pb2.FeedbackEvent) -> feedback_pb2.RecordBatchItem:
        if self.event_failures.get(event.event_id):
            return feedback_pb2.RecordBatchItem(error=self.event_failures[event.event_id].pop(0))
        duplicate = event.event_id in self.seen
        self.seen[event.event_id] = event
        stream_id = "" if duplicate else f"{len(self.seen)}-0"
        return feedback_pb2.RecordBatchItem(
            result=feedback_pb2.RecordResponse(stream_id=stream_id, duplicate=duplicate)
        )

    def Record(self, request: Any, context: Any) -> Any:
        self._begin("Record", context)
        return self._recorded(request.event).result

    def RecordBatch(self, request: Any, context: Any) -> Any:
        self._begin("RecordBatch", context)
        self.batch_sizes.append(len(request.events))
        response = feedback_pb2.RecordBatchResponse(items=[self._recorded(event) for event in request.events])
        while any(map(self.is_withheld, request.events)) and context.is_active():
            time.sleep(0.02)
        return response

    def prompts(self) -> set[str]:
        """The recorded events' prompts."""
        return {event.prompt.text for event in list(self.seen.values())}

    def Generate(self, request: Any, context: Any) -> Any:
        self._begin("Generate", context)
        return policy_pb2.GenerateResponse(
            generation_id="g1",
            candidates=[
                policy_pb2.Candidate(text="hello", log_probability=-1.5, finish_reason=policy_pb2.FINISH_REASON_LENGTH)
            ]
            * request.candidates,
            policy_version=common_pb2.ModelVersion(version="4"),
        )

    def _info(self, model: str, version: str) -> model_pb2.VersionInfo:
        info = model_pb2.VersionInfo(model=model, version=common_pb2.ModelVersion(version=version, digest="d"))
        info.state = model_pb2.VERSION_STATE_ACTIVE if version == self.active[-1] else model_pb2.VERSION_STATE_STORED
        return info

    def ListVersions(self, request: Any, context: Any) -> Any:
        self._begin("ListVersions", context)
        return model_pb2.ListVersionsResponse(versions=[self._info(request.model, v) for v in ("3", "2", "1")])

    def GetVersion(self, request: Any, context: Any) -> Any:
        self._begin("GetVersion", context)
        return model_pb2.GetVersionResponse(version=self._info(request.model, request.version or self.active[-1]))

    def Promote(self, request: Any, context: Any) -> Any:
        self._begin("Promote", context)
        before = self.active[-1]
        self.active.append(request.version)
        return model_pb2.PromoteResponse(version=self._info(request.model, request.version), previous_version=before)

    def Rollback(self, request: Any, context: Any) -> Any:
        self._begin("Rollback", context)
        before = self.active.pop()
        return model_pb2.RollbackResponse(version=self._info(request.model, self.active[-1]), previous_version=before)

    def _set_role(self, request: Any, state: model_pb2.VersionState, response: Any) -> Any:
        self.roles.append(request)
        if request.version:
            response.version.CopyFrom(self._info(request.model, request.version))
            response.version.state = state
        return response

    def GetStatus(self, request: Any, context: Any) -> Any:
        self._begin("GetStatus", context)
        waits = operations_pb2.ModelStatus(model="reward", waiting_for="reward: 37 more comparisons.")
        return operations_pb2.GetStatusResponse(models=[waits])

    def SetCanary(self, request: Any, context: Any) -> Any:
        self._begin("SetCanary", context)
        return self._set_role(request, model_pb2.VERSION_STATE_CANARY, model_pb2.SetCanaryResponse())

    def GetIdentity(self, request: Any, context: Any) -> Any:
        self._begin("GetIdentity", context)
        return access_pb2.GetIdentityResponse(caller="shop", roles=["feedback", "score"])

    def SetShadow(self, request: Any, context: Any) -> Any:
        self._begin("SetShadow", context)
        return self._set_role(request, model_pb2.VERSION_STATE_SHADOW, model_pb2.SetShadowResponse())

    def WatchVersions(self, request: Any, context: Any) -> Iterator[Any]:
        self._begin("WatchVersions", context)
        for version in self.active:
            yield model_pb2.WatchVersionsResponse(active=self._info(request.model, version))


def start(services: Services, port: int = 0, host: str = "127.0.0.1") -> tuple[grpc.Server, str]:
    """A real server and its address; whoever starts it stops it."""
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    reward_pb2_grpc.add_RewardServiceServicer_to_server(services, server)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(services, server)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(services, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(services, server)
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(services, server)
    access_pb2_grpc.add_AccessServiceServicer_to_server(services, server)
    for name in ("", *(f"rewardloop.v1.{kind}Service" for kind in ("Reward", "Feedback", "Policy", "Model"))):
        services.health.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(services.health, server)
    bound = server.add_insecure_port(f"{host}:{port}")
    server.start()
    return server, f"{host}:{bound}"


def killed_import(services: Services, command: list[str], progress: Path, from_row: int) -> int:
    """Start an import of prompts q0, q1, … and kill it while it waits for the answer about row ``from_row``.

    Returns how many lines its progress file says are done: all batches before that one, at least one of them new.
    """
    before = _lines_done(progress)
    services.is_withheld = lambda event: int(event.prompt.text[1:]) >= from_row
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and (_lines_done(progress) == before or f"q{from_row}" not in services.prompts()):
        time.sleep(0.02)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    services.is_withheld = lambda event: False
    return _lines_done(progress)


def _lines_done(progress: Path) -> int:
    return json.loads(progress.read_text())["lines_done"] if progress.exists() else 0


@contextmanager
def serving(services: Services, port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """Runs a real server; yields its address."""
    server, address = start(services, port, host)
    try:
        yield address
    finally:
        server.stop(None).wait()
