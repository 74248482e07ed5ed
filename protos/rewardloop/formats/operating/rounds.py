"""How a round lies in Redis: what lists show of it in one hash, its curves and examples in another."""

from __future__ import annotations

from rewardloop.v1 import operations_pb2

# Fields that are large, and shown of one round at a time.
DETAILS = ("curves", "examples")


def parted(shown: operations_pb2.Round) -> tuple[operations_pb2.Round, operations_pb2.Round]:
    """Return a round without its details, and a message that has nothing but them."""
    head, details = operations_pb2.Round(), operations_pb2.Round()
    head.CopyFrom(shown)
    for name in DETAILS:
        getattr(details, name).extend(getattr(head, name))
        head.ClearField(name)
    return head, details


def add_details(head: operations_pb2.Round, details: operations_pb2.Round) -> None:
    """Put the details of a round into it. A round that an earlier release published whole keeps its own."""
    for name in DETAILS:
        if not getattr(head, name):
            getattr(head, name).extend(getattr(details, name))
