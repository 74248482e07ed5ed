"""The heaviest legal messages of each method, in the shapes that cost a server the most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2, reward_pb2

MOST = 8 * 2**20 - 1024
_V1 = "/rewardloop.v1."


def _text(size: int) -> str:
    return ("alpha beta " * (size // 11 + 1))[:size]


def _prompt(size: int = 5) -> common_pb2.Prompt:
    return common_pb2.Prompt(text=_text(size))


def _score(responses: int, size: int) -> reward_pb2.ScoreRequest:
    return reward_pb2.ScoreRequest(prompt=_prompt(), responses=[_text(size)] * responses)


def _batch(groups: int, responses: int, size: int) -> reward_pb2.ScoreBatchRequest:
    return reward_pb2.ScoreBatchRequest(groups=[_score(responses, size)] * groups)


def _event(size: int, tags: int = 0) -> feedback_pb2.FeedbackEvent:
    event = feedback_pb2.FeedbackEvent(event_id="e", prompt=_prompt(), responses=[_text(size), "b"])
    event.choice.chosen, event.choice.rejected = 0, 1
    event.source = feedback_pb2.SOURCE_HUMAN
    event.annotator_id = "a"
    for i in range(tags):
        event.tags[f"t{i}"] = "v"
    return event


def _events(count: int, size: int, tags: int = 0) -> feedback_pb2.RecordBatchRequest:
    return feedback_pb2.RecordBatchRequest(events=[_event(size, tags)] * count)


def _turns(count: int, size: int) -> policy_pb2.GenerateRequest:
    messages = [common_pb2.Message(role="user", content=_text(size))] * count
    return policy_pb2.GenerateRequest(
        prompt=common_pb2.Prompt(conversation=common_pb2.Conversation(messages=messages)), candidates=1
    )


@dataclass(frozen=True)
class Load:
    """A method, whether its requests are a stream, and a message."""

    name: str
    method: str
    message: Callable[[], Message]
    is_stream: bool = False

    def send(self, channel: grpc.Channel, data: bytes, timeout_s: float, metadata: Any = None) -> None:
        """Send the message, and read all that comes back. Raises grpc.RpcError."""
        if not self.is_stream:
            channel.unary_unary(self.method)(data, timeout=timeout_s, metadata=metadata)
        elif "Health" in self.method:
            _read(channel.unary_stream(self.method)(data, timeout=timeout_s, metadata=metadata))
        else:
            _read(channel.stream_stream(self.method)(iter([data]), timeout=timeout_s, metadata=metadata))


def _read(replies: Iterator[bytes]) -> None:
    for _ in replies:
        pass


LOADS = (
    Load("Score, 31 texts of 256 KiB", f"{_V1}RewardService/Score", lambda: _score(31, 262_144)),
    Load("Score, 256 texts of 32 kB", f"{_V1}RewardService/Score", lambda: _score(256, 32_000)),
    Load("ScoreBatch, 31 groups of 256 KiB", f"{_V1}RewardService/ScoreBatch", lambda: _batch(31, 1, 262_144)),
    Load("ScoreBatch, 1024 groups of 32 texts", f"{_V1}RewardService/ScoreBatch", lambda: _batch(1024, 32, 200)),
    Load("ScoreBatch, 1024 groups of 256 texts", f"{_V1}RewardService/ScoreBatch", lambda: _batch(1024, 256, 20)),
    Load(
        "ScoreStream, 31 texts of 256 KiB",
        f"{_V1}RewardService/ScoreStream",
        lambda: reward_pb2.ScoreStreamRequest(request_id="r", request=_score(31, 262_144)),
        is_stream=True,
    ),
    Load("Record, 1 MiB", f"{_V1}FeedbackService/Record", lambda: feedback_pb2.RecordRequest(event=_event(250_000))),
    Load("RecordBatch, 31 of 250 kB", f"{_V1}FeedbackService/RecordBatch", lambda: _events(31, 250_000)),
    Load("RecordBatch, 1000 of 8 kB", f"{_V1}FeedbackService/RecordBatch", lambda: _events(1000, 8_000)),
    Load("Generate, 31 turns of 256 KiB", f"{_V1}PolicyService/Generate", lambda: _turns(31, 262_144)),
    Load("Generate, 400000 turns", f"{_V1}PolicyService/Generate", lambda: _turns(400_000, 3)),
    Load(
        "health, a name of 8 MiB",
        "/grpc.health.v1.Health/Check",
        lambda: health_pb2.HealthCheckRequest(service="x" * MOST),
    ),
    Load(
        "health, a watch of 8 MiB",
        "/grpc.health.v1.Health/Watch",
        lambda: health_pb2.HealthCheckRequest(service="x" * MOST),
        is_stream=True,
    ),
    Load(
        "reflection, a name of 8 MiB",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        lambda: reflection_pb2.ServerReflectionRequest(file_by_filename="x" * MOST),
        is_stream=True,
    ),
)
