"""Writes to Redis, and answers once enough replicas have what was written.

A replica that becomes the master keeps only what it has received. So a write that its caller is told of is followed by
WAIT on the same connection, and is refused if too few replicas have it in time. Before WAIT a further key is set: if
the command wrote nothing, because an earlier call had written the same, WAIT waits for that earlier write too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import AskError, ResponseError

from rewardloop.formats.redis_url import Kind
from rewardloop_server.calls.errors import RedisUnavailable
from rewardloop_server.calls.vocabulary import Written

AUTO = -1
# How often a part of a cluster that has had no replica is asked whether it has one now.
_ASK_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class ReplicaRules:
    """How many replicas must have a write.

    Attributes:
        replicas: How many; `AUTO` for one behind sentinels and for each part of a cluster that has a replica.
        timeout_ms: How long they may take.
    """

    replicas: int = 0
    timeout_ms: int = 1000


NO_RULES = ReplicaRules()

# What a caller is told. A move may not simply be asked for again: a second rollback goes further back.
_UNMET: dict[Written, str] = {
    "signals": "send it again",
    "operations": "decide it again",
    "pointer": "the pointer was moved, but may move back (promote what is active now to be sure of it)",
}


class Replication:
    """Runs commands that must outlive a failover.

    Args:
        redis: Where they run.
        kind: What ``redis`` is.
        rules: How many replicas must have a write; by default none.
        on_unmet: Called with what was written, each time that too few replicas had it.
    """

    def __init__(
        self,
        redis: Redis,
        kind: Kind = "server",
        rules: ReplicaRules = NO_RULES,
        on_unmet: Callable[[Written], None] = lambda what: None,
    ) -> None:
        self._redis = redis
        self._rules = rules
        self._on_unmet = on_unmet
        self._kind = kind
        self._followed: set[str] = set()  # barriers whose part of the cluster was seen with a replica
        self._ask_at: dict[str, float] = {}  # when to look for one again, of those whose part was not

    async def run(self, what: Written, barrier: str, *command: Any) -> Any:
        """Return the reply of a command once enough replicas have what it wrote.

        Args:
            what: What it writes.
            barrier: A key in the command's hash slot, which this class alone sets.
            command: The command with its arguments, which may be run a second time.

        Raises:
            RedisUnavailable, StoreFull: It may have been written. Running the command again is the way to be sure.
            redis.RedisError: The command's own error.
        """
        replicas = await self.required(barrier)
        if not replicas:
            client: Any = self._redis  # redis-py leaves this method untyped
            return await client.execute_command(*command)
        try:
            reply, reached = await self._run_and_wait(barrier, command, replicas)
        except AskError:  # the slot has moved: a single command makes the client learn where it is
            await self._redis.exists(barrier)
            reply, reached = await self._run_and_wait(barrier, command, replicas)
        if reached < replicas:
            self._on_unmet(what)
            raise RedisUnavailable(
                f"{_UNMET[what]}: {reached} of {replicas} replicas of Redis have that after {self._rules.timeout_ms} ms"
            )
        return reply

    async def required(self, barrier: str) -> int:
        """Return how many replicas must have a write in the barrier's hash slot."""
        if self._rules.replicas != AUTO:
            return self._rules.replicas
        if self._kind != "cluster":
            return int(self._kind == "sentinel")
        if barrier not in self._followed and time.monotonic() >= self._ask_at.get(barrier, 0.0):
            self._ask_at[barrier] = time.monotonic() + _ASK_EVERY_S
            if await self._has_replica(barrier):
                self._followed.add(barrier)
        return int(barrier in self._followed)

    async def _has_replica(self, barrier: str) -> bool:
        """Ask the master of the barrier's slot, because what the client knows of the cluster may be old."""
        client: Any = self._redis  # `connect_redis` returns a cluster as a `Redis`
        await client.initialize()
        try:
            info = await client.execute_command("INFO", "replication", target_nodes=client.get_node_from_key(barrier))
        except ResponseError:  # this user may not ask
            return client.get_node_from_key(barrier, replica=True) is not None
        return int(info["connected_slaves"]) > 0

    async def _run_and_wait(self, barrier: str, command: tuple[Any, ...], replicas: int) -> tuple[Any, int]:
        client: Any = self._redis  # the pipelines of a server and of a cluster differ in their types alone
        where, redirected = {}, {}
        if self._kind == "cluster":
            await client.initialize()
            where = {"target_nodes": client.get_node_from_key(barrier)}
            # A command that was sent on to another node would leave its WAIT behind.
            redirected = {"allow_redirections": False}
        async with client.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command, **where)
            pipe.execute_command("SET", barrier, "", **where)
            pipe.execute_command("WAIT", replicas, self._rules.timeout_ms, **where)
            replies = await pipe.execute(raise_on_error=False, **redirected)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies[0], int(replies[2])
