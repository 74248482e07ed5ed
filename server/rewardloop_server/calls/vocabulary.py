"""The fixed words of the serving processes, each defined once: code, settings and metrics take them from here.

Words that other processes also use are in `rewardloop.formats.vocabulary`, and the reasons of refusals are the error
classes of `rewardloop_server.calls.errors`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from rewardloop.formats.vocabulary import LANES, SIGNAL_KINDS, VERSION_ROLES
from rewardloop.v1 import access_pb2, feedback_pb2, labelling_pb2, model_pb2, operations_pb2, policy_pb2, reward_pb2

ACCESS_SERVICE = access_pb2.DESCRIPTOR.services_by_name["AccessService"]
REWARD_SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"]
FEEDBACK_SERVICE = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"]
MODEL_SERVICE = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
LABELLING_SERVICE = labelling_pb2.DESCRIPTOR.services_by_name["LabellingService"]
POLICY_SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"]
OPERATIONS_SERVICE = operations_pb2.DESCRIPTOR.services_by_name["OperationsService"]

# A call of a method that no service has, which the door refuses, is counted under this name.
UNKNOWN_METHOD = "/rewardloop.unknown"


def methods_of(*services: ServiceDescriptor) -> tuple[str, ...]:
    """Return the names under which calls of the services are counted, such as ``RewardService/Score``."""
    return (*(f"{service.name}/{method.name}" for service in services for method in service.methods), UNKNOWN_METHOD)


METHODS = methods_of(
    ACCESS_SERVICE,
    REWARD_SERVICE,
    FEEDBACK_SERVICE,
    LABELLING_SERVICE,
    MODEL_SERVICE,
    POLICY_SERVICE,
    OPERATIONS_SERVICE,
)

# Every gRPC code, because the policy worker's statuses are passed on as they are.
CODES = tuple(code.name for code in grpc.StatusCode)

# The lanes that a request may name, and the one behind them for the shadow version.
QUEUE_LANES = (*LANES, "shadow")
# The one lane of the policy worker.
SAMPLING_LANE = "production"

Stage: TypeAlias = Literal["tokenize", "queue", "run", "total"]
STAGES: tuple[Stage, ...] = get_args(Stage)
# The stages that the policy worker measures.
SAMPLING_STAGES: tuple[Stage, ...] = ("queue", "run", "total")

CacheOutcome: TypeAlias = Literal["hit", "miss"]
CACHE_OUTCOMES: tuple[CacheOutcome, ...] = get_args(CacheOutcome)

# The shadow version and the one that answered are compared by these orders of a group, with one of these outcomes.
ComparedOrder: TypeAlias = Literal["best", "pair"]
COMPARED_ORDERS: tuple[ComparedOrder, ...] = get_args(ComparedOrder)
Agreement: TypeAlias = Literal["agree", "disagree"]
AGREEMENTS: tuple[Agreement, ...] = get_args(Agreement)

# What became of a run that failed: its requests ran again in parts, or in smaller runs because memory did not suffice;
# its one request failed, or all its requests failed because the version no longer runs at all, or because the server
# that runs it did not answer.
FailedRunOutcome: TypeAlias = Literal["split", "smaller", "isolated", "broken", "away"]
FAILED_RUN_OUTCOMES: tuple[FailedRunOutcome, ...] = get_args(FailedRunOutcome)

# Where the runs of versions are that a server elsewhere runs, beside the names of this process's devices.
ELSEWHERE = "elsewhere"

# The terms of the cost model; per_token2 multiplies the square of a row's tokens.
CostTerm: TypeAlias = Literal["fixed", "per_token", "per_token2"]
COST_TERMS: tuple[CostTerm, ...] = get_args(CostTerm)

# The roles of versions in memory.
RESIDENT_ROLES = ("active", *VERSION_ROLES, "warm", "draining")

# "none" is a signal of no kind, which is rejected.
COUNTED_KINDS = (*SIGNAL_KINDS, "none")
FeedbackOutcome: TypeAlias = Literal["recorded", "spooled", "duplicate", "rejected", "failed"]
FEEDBACK_OUTCOMES: tuple[FeedbackOutcome, ...] = get_args(FeedbackOutcome)

# What became of a labeller's answer: "failed" is not known to be recorded, because Redis did not answer.
AnswerOutcome: TypeAlias = Literal["recorded", "duplicate", "refused", "failed"]
ANSWER_OUTCOMES: tuple[AnswerOutcome, ...] = get_args(AnswerOutcome)

# The files that the door reads again and with what outcome, the names of quotas, and the outcomes of audit lines.
ReloadedFile: TypeAlias = Literal["callers", "certificate"]
RELOADED_FILES: tuple[ReloadedFile, ...] = get_args(ReloadedFile)
ReloadOutcome: TypeAlias = Literal["taken", "refused"]
RELOAD_OUTCOMES: tuple[ReloadOutcome, ...] = get_args(ReloadOutcome)
QuotaName: TypeAlias = Literal["requests", "tokens", "bytes", "concurrent"]
QUOTA_NAMES: tuple[QuotaName, ...] = get_args(QuotaName)
AuditOutcome: TypeAlias = Literal["written", "failed", "suppressed"]
AUDIT_OUTCOMES: tuple[AuditOutcome, ...] = get_args(AuditOutcome)

# What becomes of an acknowledged signal if Redis is killed. Its append-only file is synced before each answer (always),
# every second, or when the system likes (no), or how often cannot be found out (appended). Without that file there are
# snapshots, or nothing (memory), or which of the two cannot be found out (not_appended).
Durability: TypeAlias = Literal[
    "always", "everysec", "no", "appended", "snapshots", "memory", "not_appended", "unknown"
]
DURABILITIES: tuple[Durability, ...] = get_args(Durability)

# Where a model's pointer was read that is followed.
PointerSource: TypeAlias = Literal["redis", "store"]
POINTER_SOURCES: tuple[PointerSource, ...] = get_args(PointerSource)

# What was not acknowledged, because too few replicas of Redis had it.
Written: TypeAlias = Literal["signals", "pointer", "operations"]
WRITTEN: tuple[Written, ...] = get_args(Written)
