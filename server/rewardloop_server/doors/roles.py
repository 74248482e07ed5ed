"""Which roles may call which method. The table has every method of every service; any other is refused to all."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Role: TypeAlias = Literal["score", "feedback", "generate", "admin"]

ROLES: tuple[Role, ...] = get_args(Role)

_ANY = frozenset(ROLES)

# No role includes another, so a token that promotes versions cannot score. A caller may have several roles.
ALLOWED: dict[str, frozenset[Role]] = {
    "/rewardloop.v1.RewardService/Score": frozenset({"score"}),
    "/rewardloop.v1.RewardService/ScoreBatch": frozenset({"score"}),
    "/rewardloop.v1.RewardService/ScoreStream": frozenset({"score"}),
    "/rewardloop.v1.FeedbackService/Record": frozenset({"feedback"}),
    "/rewardloop.v1.FeedbackService/RecordBatch": frozenset({"feedback"}),
    "/rewardloop.v1.FeedbackService/Retract": frozenset({"feedback"}),
    "/rewardloop.v1.FeedbackService/Erase": frozenset({"admin"}),
    "/rewardloop.v1.PolicyService/Generate": frozenset({"generate"}),
    "/rewardloop.v1.PolicyService/GenerateStream": frozenset({"generate"}),
    "/rewardloop.v1.ModelService/ListVersions": _ANY,
    "/rewardloop.v1.ModelService/GetVersion": _ANY,
    "/rewardloop.v1.ModelService/WatchVersions": _ANY,
    "/rewardloop.v1.ModelService/Promote": frozenset({"admin"}),
    "/rewardloop.v1.ModelService/Rollback": frozenset({"admin"}),
    "/rewardloop.v1.ModelService/SetCanary": frozenset({"admin"}),
    "/rewardloop.v1.ModelService/SetShadow": frozenset({"admin"}),
}

# Anybody may call these. Probes and tools have no token, and learn only that the service exists and its public protos.
OPEN = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        # Tools ask for this one first, and for the next one if it is UNIMPLEMENTED.
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)

# A publishable token opens these alone, whatever its caller may do.
PUBLISHABLE = frozenset({"/rewardloop.v1.FeedbackService/Record", "/rewardloop.v1.FeedbackService/RecordBatch"})

# Calls of these are written to the audit log.
ADMIN = frozenset(method for method, roles in ALLOWED.items() if roles == {"admin"})
