"""Which roles may call which method. The table has every method of every service; any other is refused to all."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Role: TypeAlias = Literal["score", "feedback", "generate", "label", "view", "admin"]

ROLES: tuple[Role, ...] = get_args(Role)

_ANY = frozenset(ROLES)
# Labellers are not told of versions, so that they judge blindly.
_ANY_BUT_LABELLERS = frozenset(ROLES) - {"label"}
_LABELLING = frozenset[Role]({"label", "view", "admin"})
_VIEW = frozenset[Role]({"view", "admin"})

# No role includes another, so a token that promotes versions cannot score. A caller may have several roles.
ALLOWED: dict[str, frozenset[Role]] = {
    "/rewardloop.v1.AccessService/GetIdentity": frozenset(ROLES),
    "/rewardloop.v1.RewardService/Score": frozenset({"score"}),
    "/rewardloop.v1.RewardService/ScoreBatch": frozenset({"score"}),
    "/rewardloop.v1.RewardService/ScoreStream": frozenset({"score"}),
    "/rewardloop.v1.FeedbackService/Record": frozenset({"feedback"}),
    "/rewardloop.v1.FeedbackService/RecordBatch": frozenset({"feedback"}),
    "/rewardloop.v1.FeedbackService/Retract": frozenset({"feedback"}),
    "/rewardloop.v1.FeedbackService/Erase": frozenset({"admin"}),
    "/rewardloop.v1.FeedbackService/ListTaughtVersions": frozenset({"admin"}),
    "/rewardloop.v1.PolicyService/Generate": frozenset({"generate"}),
    "/rewardloop.v1.PolicyService/GenerateStream": frozenset({"generate"}),
    "/rewardloop.v1.ModelService/ListVersions": _ANY_BUT_LABELLERS,
    "/rewardloop.v1.ModelService/GetVersion": _ANY_BUT_LABELLERS,
    "/rewardloop.v1.ModelService/WatchVersions": _ANY_BUT_LABELLERS,
    "/rewardloop.v1.ModelService/Promote": frozenset({"admin"}),
    "/rewardloop.v1.ModelService/Rollback": frozenset({"admin"}),
    "/rewardloop.v1.ModelService/SetCanary": frozenset({"admin"}),
    "/rewardloop.v1.ModelService/SetShadow": frozenset({"admin"}),
    "/rewardloop.v1.OperationsService/GetStatus": _VIEW,
    "/rewardloop.v1.OperationsService/ListRounds": _VIEW,
    "/rewardloop.v1.OperationsService/GetRound": _VIEW,
    "/rewardloop.v1.OperationsService/ListPeople": _VIEW,
    "/rewardloop.v1.OperationsService/ListDeadLetters": _VIEW,
    "/rewardloop.v1.OperationsService/ListReports": _VIEW,
    "/rewardloop.v1.OperationsService/GetReport": _VIEW,
    "/rewardloop.v1.OperationsService/SetMuted": frozenset({"admin"}),
    "/rewardloop.v1.OperationsService/RequeueDeadLetter": frozenset({"admin"}),
    "/rewardloop.v1.OperationsService/DropDeadLetter": frozenset({"admin"}),
    "/rewardloop.v1.LabellingService/AddTasks": frozenset({"admin"}),
    "/rewardloop.v1.LabellingService/RetractTasks": frozenset({"admin"}),
    "/rewardloop.v1.LabellingService/NextTask": frozenset({"label"}),
    "/rewardloop.v1.LabellingService/Answer": frozenset({"label"}),
    "/rewardloop.v1.LabellingService/Undo": frozenset({"label"}),
    "/rewardloop.v1.LabellingService/GetProgress": _LABELLING,
    "/rewardloop.v1.LabellingService/ListAnswers": frozenset({"view", "admin"}),
    "/rewardloop.v1.LabellingService/SetGuidelines": frozenset({"admin"}),
    "/rewardloop.v1.LabellingService/GetGuidelines": _LABELLING,
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
