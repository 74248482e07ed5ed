"""Requests that nobody would send, to every method of a real deployment over real gRPC.

    python tests/fuzz/rpc.py --messages 100000

Half of the requests are random messages of the method's type, half are valid ones with bytes gone wrong; the order and
every byte come from --seed. Ends with a table of status codes, and with status 1 after a crash, a request that was not
answered within a minute, INTERNAL or UNKNOWN from anywhere, or a traceback in a log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
from fuzz.messages import damaged, random_message
from google.protobuf.message import Message
from google.rpc import status_pb2

from rewardloop.v1 import access_pb2, feedback_pb2, labelling_pb2, model_pb2, operations_pb2, policy_pb2, reward_pb2

HANG_S = 60.0
BAD = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "NOT ANSWERED", "LOST"}
IN_FLIGHT = 32
_PROMPT = {"text": "alpha beta"}
_EVENT = {"event_id": "e1", "prompt": _PROMPT, "responses": ["beta", "gamma"], "choice": {"chosen": 0, "rejected": 1}}
_TASK = {"prompt": _PROMPT, "candidates": [{"text": "beta"}, {"text": "gamma"}], "kinds": [1, 2, 3, 4]}
_GROUP = {"prompt": _PROMPT, "responses": ["beta", "gamma delta"]}

# Each method with how often it is chosen and its valid requests. Those that load a version seldom: a load takes long.
METHODS: dict[str, tuple[float, Sequence[Message]]] = {
    "RewardService/Score": (3, [reward_pb2.ScoreRequest(**_GROUP)]),
    "RewardService/ScoreBatch": (2, [reward_pb2.ScoreBatchRequest(groups=[_GROUP, _GROUP])]),
    "RewardService/ScoreStream": (2, [reward_pb2.ScoreStreamRequest(request_id="r1", request=_GROUP)]),
    "FeedbackService/Record": (3, [feedback_pb2.RecordRequest(event=_EVENT)]),
    "FeedbackService/RecordBatch": (
        2,
        [feedback_pb2.RecordBatchRequest(events=[_EVENT, {**_EVENT, "event_id": "e2"}])],
    ),
    "PolicyService/Generate": (
        1,
        [
            policy_pb2.GenerateRequest(prompt=_PROMPT, candidates=2, temperature=0.7, top_p=0.9, seed=1),
            policy_pb2.GenerateRequest(prompt=_PROMPT, candidates=2, best_of=4, selection=2, random_share=0.1),
        ],
    ),
    "PolicyService/GenerateStream": (
        1,
        [
            policy_pb2.GenerateStreamRequest(
                request=policy_pb2.GenerateRequest(prompt=_PROMPT, candidates=2, seed=1, stop=["x"], pin_version="1")
            )
        ],
    ),
    "FeedbackService/Erase": (0.5, [feedback_pb2.EraseRequest(annotator_id="nobody", caller="fuzz")]),
    "FeedbackService/ListTaughtVersions": (
        0.5,
        [feedback_pb2.ListTaughtVersionsRequest(annotator_id="nobody", caller="fuzz")],
    ),
    "AccessService/GetIdentity": (0.5, [access_pb2.GetIdentityRequest()]),
    "LabellingService/AddTasks": (
        1,
        [labelling_pb2.AddTasksRequest(project="fuzz", import_id="fuzz", tasks=[_TASK])],
    ),
    "LabellingService/RetractTasks": (
        0.5,
        [labelling_pb2.RetractTasksRequest(project="fuzz", import_id="fuzz", answers=True)],
    ),
    "LabellingService/NextTask": (1, [labelling_pb2.NextTaskRequest(project="fuzz", labeller="anna")]),
    "LabellingService/Answer": (
        1,
        [
            labelling_pb2.AnswerRequest(
                project="fuzz", labeller="anna", lease_id="0" * 32, verdict={"tie": {"first": 0, "second": 1}}
            )
        ],
    ),
    "LabellingService/Undo": (0.5, [labelling_pb2.UndoRequest(project="fuzz", labeller="anna")]),
    "LabellingService/GetProgress": (0.5, [labelling_pb2.GetProgressRequest(project="fuzz")]),
    "LabellingService/ListAnswers": (0.5, [labelling_pb2.ListAnswersRequest(project="fuzz", page_token="1-1")]),
    "LabellingService/SetGuidelines": (0.5, [labelling_pb2.SetGuidelinesRequest(project="fuzz", text="# Be fair")]),
    "LabellingService/GetGuidelines": (0.5, [labelling_pb2.GetGuidelinesRequest(project="fuzz")]),
    "FeedbackService/Retract": (0.5, [feedback_pb2.RetractRequest(import_id="fuzz")]),
    "OperationsService/GetStatus": (0.5, [operations_pb2.GetStatusRequest()]),
    "OperationsService/ListRounds": (0.5, [operations_pb2.ListRoundsRequest(model="reward", page_size=5)]),
    "OperationsService/GetRound": (0.5, [operations_pb2.GetRoundRequest(model="reward", trainer_id="t", number=1)]),
    "OperationsService/ListPeople": (0.5, [operations_pb2.ListPeopleRequest()]),
    "OperationsService/SetMuted": (
        0.5,
        [operations_pb2.SetMutedRequest(annotator_id="anna", muted=True, reason="fuzz")],
    ),
    "OperationsService/ListDeadLetters": (0.5, [operations_pb2.ListDeadLettersRequest(after_letter_id="1-1")]),
    "OperationsService/RequeueDeadLetter": (0.5, [operations_pb2.RequeueDeadLetterRequest(letter_id="1-1")]),
    "OperationsService/DropDeadLetter": (0.5, [operations_pb2.DropDeadLetterRequest(letter_id="1-1")]),
    "OperationsService/ListReports": (0.5, [operations_pb2.ListReportsRequest()]),
    "OperationsService/GetReport": (0.5, [operations_pb2.GetReportRequest(report_id="fuzz")]),
    "ModelService/ListVersions": (1, [model_pb2.ListVersionsRequest(model=name) for name in ("reward", "policy")]),
    "ModelService/GetVersion": (1, [model_pb2.GetVersionRequest(model="reward", version="1")]),
    "ModelService/WatchVersions": (1, [model_pb2.WatchVersionsRequest(model=name) for name in ("reward", "policy")]),
    "ModelService/Promote": (0.5, [model_pb2.PromoteRequest(model="reward", version="2", reason="fuzz")]),
    "ModelService/Rollback": (0.5, [model_pb2.RollbackRequest(model="reward", reason="fuzz")]),
    "ModelService/SetCanary": (0.5, [model_pb2.SetCanaryRequest(model="reward", version="2", share=0.1)]),
    "ModelService/SetShadow": (0.5, [model_pb2.SetShadowRequest(model="reward", version="2", share=0.5)]),
}
_SERVICES = {
    service.name: service
    for module in (access_pb2, reward_pb2, feedback_pb2, labelling_pb2, operations_pb2, policy_pb2, model_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}


@dataclass
class Found:
    """How the requests ended."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, method: str, code: str, request: bytes, text: str = "") -> None:
        self.codes[method, code] += 1
        if code in BAD:
            self.bad.append(f"{method} {code} {text}: {request[:400].hex()}")

    def table(self) -> str:
        """Methods down, codes across."""
        codes = sorted({code for _, code in self.codes}, key=lambda c: (c != "OK", c))
        rows = [["method", *codes, "all"]]
        for method in METHODS:
            counts = [self.codes[method, code] for code in codes]
            rows.append([method, *(f"{count:,}" for count in counts), f"{sum(counts):,}"])
        totals = [sum(self.codes[method, code] for method in METHODS) for code in codes]
        rows.append(["all", *(f"{total:,}" for total in totals), f"{sum(totals):,}"])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


async def fuzz(address: str, messages: int, seed: int, token: str) -> Found:
    """Send so many requests, `IN_FLIGHT` at once; a stream's requests count one by one."""
    chance = random.Random(seed)
    found = Found()
    left = messages
    valid = [request.SerializeToString() for _, requests in METHODS.values() for request in requests]
    names, weights = list(METHODS), [weight for weight, _ in METHODS.values()]
    started = time.monotonic()

    with grpc.insecure_channel(address) as blocking:
        channels = (grpc.aio.insecure_channel(address), blocking)

        async def send() -> None:
            nonlocal left
            while left > 0:
                method = chance.choices(names, weights)[0]
                count = min(left, chance.choice((1, 2, 5)) if method.endswith("Stream") else 1)
                left -= count
                requests = [_request(method, valid, chance) for _ in range(count)]
                await _call(channels, method, requests, _authorization(token, chance), found)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(send())
        await channels[0].close(None)
    found.seconds = time.monotonic() - started
    return found


def _request(method: str, valid: Sequence[bytes], chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        service, _, name = method.partition("/")
        kind = _SERVICES[service].methods_by_name[name].input_type._concrete_class
        data = random_message(kind, chance).SerializeToString()
        return data if chance.random() < 0.8 else damaged(data, valid, chance)
    own = [request.SerializeToString() for request in METHODS[method][1]]
    return damaged(chance.choice(own), valid, chance) if chance.random() < 0.9 else chance.choice(own)


def _authorization(token: str, chance: random.Random) -> tuple[tuple[str, str], ...]:
    if chance.random() < 0.98:
        return (("authorization", f"Bearer {token}"),)
    odd = "".join(chance.choices("Bearer rlt_:;=,~!", k=chance.randrange(60))).strip()
    return (("authorization", odd),)


async def _call(
    channels: tuple[grpc.aio.Channel, grpc.Channel], method: str, requests: Sequence[bytes], metadata: Any, found: Found
) -> None:
    path = f"/rewardloop.v1.{method}"
    replies: list[bytes] = []
    if method.endswith(("ScoreStream", "WatchVersions", "GenerateStream")):
        # grpc.aio may say of a stream that is refused while it writes that it failed by itself; this one does not.
        call = await asyncio.to_thread(_stream, channels[1], path, requests, metadata, replies)
        code, text, trailers = call.code(), call.details(), call.trailing_metadata()
    else:
        unary: Any = channels[0].unary_unary(path)(requests[0], metadata=metadata, timeout=HANG_S)
        with contextlib.suppress(grpc.aio.AioRpcError):  # the status says it
            replies.append(await unary)
        code, text, trailers = await unary.code(), await unary.details(), await unary.trailing_metadata()
    name = code.name
    if replies and method.endswith("WatchVersions"):
        name = "OK"  # cancelled by us
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        name = "NOT ANSWERED"
    elif code is grpc.StatusCode.UNAVAILABLE and not tuple(trailers or ()):
        name = "LOST"  # nobody answered: the process is gone
    elif code is grpc.StatusCode.OK and len(replies) != len(requests) and not method.endswith("GenerateStream"):
        name, text = "LOST", f"{len(replies)} replies to {len(requests)} requests"
    for request in requests:
        found.take(method, name, request, text or "")
    for error in _errors_inside(method, replies):
        inside = next((c.name for c in grpc.StatusCode if c.value[0] == error.code), str(error.code))
        if inside in BAD:
            found.take(method, inside, b"".join(requests), f"of an item: {error.message}")


def _stream(channel: grpc.Channel, path: str, requests: Sequence[bytes], metadata: Any, replies: list[bytes]) -> Any:
    """All replies; of a watch the first."""
    call: Any = channel.stream_stream(path)(iter(requests), metadata=metadata, timeout=HANG_S)
    with contextlib.suppress(grpc.RpcError):
        for reply in call:
            replies.append(reply)
            if path.endswith("WatchVersions"):
                call.cancel()
    return call


def _errors_inside(method: str, replies: Sequence[bytes]) -> list[status_pb2.Status]:
    """Of batch items and stream replies."""
    if method.endswith("ScoreBatch"):
        return [item.error for reply in replies for item in reward_pb2.ScoreBatchResponse.FromString(reply).items]
    if method.endswith("RecordBatch"):
        return [item.error for reply in replies for item in feedback_pb2.RecordBatchResponse.FromString(reply).items]
    if method.endswith("ScoreStream"):
        return [reward_pb2.ScoreStreamResponse.FromString(reply).error for reply in replies]
    return []


@asynccontextmanager
async def deployment(directory: Path) -> AsyncIterator[tuple[Any, Any, str]]:
    """A serving process and a policy worker, both behind a callers' file, and a token that may do everything."""
    from support.doors import CallersFile
    from support.policy_versions import byte_encoder, publish_policy, small_llama
    from support.policy_workers import Worker
    from support.processes import ServeProcess
    from support.reward_graphs import publish_sum_version

    from rewardloop.formats.store import ModelStore
    from rewardloop_local.redis_server import EmbeddedRedis

    redis = EmbeddedRedis(directory / "redis")
    redis.start()
    store = ModelStore(directory / "models")
    callers = CallersFile(directory)
    token = callers.add("fuzz", "score", "feedback", "generate", "label", "admin")
    (directory / "token").write_text(token)
    for seed in range(2):
        publish_sum_version(store, factor=1.0 + seed)
        publish_policy(store, small_llama(seed), byte_encoder())
    door = ("--callers", str(callers.path))
    worker = Worker(directory, redis.url, "--max-new-tokens", "8", *door)
    serve = ServeProcess(directory / "models", redis.url, directory / "serve.log")
    serve.args = (*door, "--audit-file", str(directory / "audit.jsonl"), "--policy-address", worker.address)
    serve.args = (*serve.args, "--policy-token-file", str(directory / "token"))
    try:
        worker.until_serving()
        serve.start()
        for service in ("RewardService", "FeedbackService", "PolicyService"):
            serve.wait_until_serving(f"rewardloop.v1.{service}")
        yield serve, worker, token
    finally:
        if serve.process is not None and serve.process.poll() is None:
            serve.kill()
        worker.process.kill()
        worker.process.wait()
        redis.stop()


async def run(directory: Path, messages: int, seed: int) -> Found:
    """Fuzz a deployment of its own; what is wrong is in `Found.bad`."""
    async with deployment(directory) as (serve, worker, token):
        found = await fuzz(serve.address, messages, seed, token)
        for name, process in (("serve", serve.process), ("policy-worker", worker.process)):
            if process.poll() is not None:
                found.bad.append(f"{name} ended with {process.returncode}")
    for log in ("serve.log", "worker.log"):
        text = (directory / log).read_text(errors="replace")
        if "Traceback" in text:
            found.bad.append(f"a traceback in {log}: {text[text.index('Traceback') :][:3000]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(run(Path(directory), arguments.messages, arguments.seed))
    print(found.table())
    rate = arguments.messages / found.seconds
    print(f"{arguments.messages:,} messages in {found.seconds:.0f} s ({rate:,.0f} a second), seed {arguments.seed}")
    for line in found.bad[:20]:
        print(line)
    print("nothing wrong" if not found.bad else f"{len(found.bad)} wrong")
    return 1 if found.bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
