"""Client of rewardloop: score responses, record feedback, generate, and see or move model versions.

    with RewardloopClient("127.0.0.1:50051") as client:
        result = client.score("How do I reset it?", ["Hold the button.", "No idea."])
        client.record(Feedback.choice(prompt=..., responses=..., chosen=0, rejected=1))

`AsyncRewardloopClient` has the same methods for asyncio; `rewardloop_client.fake` has a server in memory for tests,
`rewardloop_client.metrics` an observer that counts calls for Prometheus.
"""

from rewardloop_client._aio import AsyncRewardloopClient
from rewardloop_client._connection import Connection, InvalidAddress
from rewardloop_client._deadline import deadline, keep_deadline, time_left
from rewardloop_client._errors import (
    Cancelled,
    CorruptVersion,
    DeadlineExceeded,
    DeadlinePassed,
    Draining,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    MessageTooLarge,
    NoModel,
    NotFound,
    NothingToRollBack,
    NotLoadable,
    Overloaded,
    PermissionDenied,
    PolicyUnavailable,
    QueueFull,
    RedisUnavailable,
    ReplayedSignal,
    RewardloopError,
    StoreFull,
    TooManySignals,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    UnknownGeneration,
    UnknownVersion,
    Unreachable,
    UnsafeVersion,
    UntrustedVersion,
    Violation,
)
from rewardloop_client._feedback import Feedback
from rewardloop_client._hedge import Hedging
from rewardloop_client._observe import FinishedCall
from rewardloop_client._sync import RewardloopClient
from rewardloop_client._types import (
    Candidate,
    Chosen,
    Generation,
    ModelVersion,
    Promotion,
    RecordResult,
    ResponseScore,
    ScoreGroup,
    ScoreResult,
    Timings,
    VersionInfo,
)

__all__ = [
    "AsyncRewardloopClient",
    "Cancelled",
    "Candidate",
    "Chosen",
    "Connection",
    "CorruptVersion",
    "DeadlineExceeded",
    "DeadlinePassed",
    "Draining",
    "FailedPrecondition",
    "Feedback",
    "FinishedCall",
    "Generation",
    "Hedging",
    "InternalError",
    "InvalidAddress",
    "InvalidRequest",
    "MessageTooLarge",
    "ModelVersion",
    "NoModel",
    "NotFound",
    "NotLoadable",
    "NothingToRollBack",
    "Overloaded",
    "PermissionDenied",
    "PolicyUnavailable",
    "Promotion",
    "QueueFull",
    "RecordResult",
    "RedisUnavailable",
    "ReplayedSignal",
    "ResponseScore",
    "RewardloopClient",
    "RewardloopError",
    "ScoreGroup",
    "ScoreResult",
    "StoreFull",
    "Timings",
    "TooManySignals",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnknownGeneration",
    "UnknownVersion",
    "Unreachable",
    "UnsafeVersion",
    "UntrustedVersion",
    "VersionInfo",
    "Violation",
    "deadline",
    "keep_deadline",
    "time_left",
]
