"""The words that several processes share: settings, metrics, alerts and documents take them from here.

Words that the protocol buffers define are read from them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from google.protobuf.descriptor import EnumDescriptor

from rewardloop.v1 import common_pb2, feedback_pb2


def _values(enum: EnumDescriptor, prefix: str) -> tuple[str, ...]:
    """The enum's values as lower-case words, without the prefix and the unspecified value."""
    words = (value.name.removeprefix(prefix).lower() for value in enum.values)
    return tuple(word for word in words if word != "unspecified")


SIGNAL_KINDS: tuple[str, ...] = tuple(
    field.name for field in feedback_pb2.FeedbackEvent.DESCRIPTOR.oneofs_by_name["signal"].fields
)
SOURCES = _values(feedback_pb2.Source.DESCRIPTOR, "SOURCE_")
LANES = _values(common_pb2.Lane.DESCRIPTOR, "LANE_")

# Who speaks in a turn. Which of them a model has is said by its text format.
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)

OfflineAlgorithm: TypeAlias = Literal["dpo", "kto", "simpo", "orpo"]
OnlineAlgorithm: TypeAlias = Literal["ppo", "grpo", "rloo", "online-dpo", "reinforce-pp", "dr-grpo", "dapo"]
Algorithm: TypeAlias = Literal[OfflineAlgorithm, OnlineAlgorithm]
# With "auto" the data choose.
AlgorithmChoice: TypeAlias = Literal["auto", Algorithm]
OFFLINE_ALGORITHMS: tuple[OfflineAlgorithm, ...] = get_args(OfflineAlgorithm)
ONLINE_ALGORITHMS: tuple[OnlineAlgorithm, ...] = get_args(OnlineAlgorithm)
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)

# The roles of versions that serve beside the active one.
VersionRole: TypeAlias = Literal["canary", "shadow"]
VERSION_ROLES: tuple[VersionRole, ...] = get_args(VersionRole)

# The note of a manifest that says that the version's score heads are new: random, and trained by no round yet.
UNTRAINED_HEADS_NOTE = "untrained_heads"
