"""The tasks, leases and answers of all projects, in Redis. Every step is one script, so that two servers agree."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from rewardloop.formats import keys
from rewardloop.formats.labelling.scripts import PLACES
from rewardloop.formats.labelling.verdicts import comparisons
from rewardloop.v1 import labelling_pb2, policy_pb2
from rewardloop_server.calls.errors import UnknownProject
from rewardloop_server.calls.redis_link import redis_errors, script_text
from rewardloop_server.calls.replication import Replication
from rewardloop_server.labelling.labeller import Labeller

# What a task tells that no model has scored: as much as the most uncertain pair, apart from the spread of the heads.
UNKNOWN_INFORMATION = 0.25
_RETRACTED_AT_ONCE = 50
_STALE_AT_ONCE = 256


def _script(name: str) -> tuple[str, str]:
    """Return a script, with what all scripts share before it, and its SHA1."""
    text = PLACES + "\n" + script_text("rewardloop_server.labelling", name)
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_ADD, _NEXT, _BEGIN, _COMMIT, _REVERT = map(_script, ("add.lua", "next.lua", "begin.lua", "commit.lua", "revert.lua"))
_TAKE_BACK, _FORGET, _RETRACT = map(_script, ("take_back.lua", "forget.lua", "retract.lua"))
_INFORM, _LOOK = map(_script, ("inform.lua", "look.lua"))

Begun: TypeAlias = Literal["pending", "answered", "other", "taken", "retracted", "unknown"]


@dataclass(frozen=True, slots=True)
class QueueRules:
    """How tasks are handed out.

    Attributes:
        lease_ms: Milliseconds after which a lease ends.
        uniform_share: Share of the tasks that are drawn uniformly.
        repeat_share: Share of the tasks that are given again to who has answered them.
        most_skips: After so many skips nobody gets a task any more.
    """

    lease_ms: int = 600_000
    uniform_share: float = 0.2
    repeat_share: float = 0.0
    most_skips: int = 3


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task as it was added, and the generation that gave its candidates, if one did."""

    task_id: str
    new: labelling_pb2.NewTask
    generation: policy_pb2.Generation | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease of a task.

    Attributes:
        lease_id: Its id.
        task_id: The task.
        who: The key of its labeller.
        state: "held", "ended", "pending", "answered", "undoing" or "retracted".
        order: Indices of the candidates in the order in which they are shown.
        probability: With which the task was drawn.
        is_uniform: The task was drawn uniformly.
        is_repeat: The labeller had answered the task before.
        information: What the answer was expected to tell; None if the model had not said.
        given: The answer, without its task; None before there is one.
        attempt: How many answers under it were refused.
    """

    lease_id: str
    task_id: str
    who: str
    state: str
    order: tuple[int, ...]
    probability: float
    is_uniform: bool
    is_repeat: bool
    information: float | None
    given: labelling_pb2.GivenAnswer | None
    attempt: int

    @property
    def import_id(self) -> str:
        """The import of its signals, by which they are taken back."""
        return f"label:{self.lease_id}:{self.attempt}"


@dataclass(frozen=True, slots=True)
class Offered:
    """A task that was given to a labeller, until ``expires_ms`` in Unix milliseconds."""

    lease_id: str
    task_id: str
    order: tuple[int, ...]
    expires_ms: int
    new: labelling_pb2.NewTask
    guidelines: str


@dataclass(frozen=True, slots=True)
class Given:
    """What a labeller gets.

    Attributes:
        offered: The task; None if there is none.
        all_done: There is none because all are done.
        answered: How many tasks the labeller has answered.
        left: How many more the labeller may get.
        own_left: Without a task: how many that the labeller had wait for others.
        taken: Without a task: how many others have now.
    """

    offered: Offered | None
    all_done: bool
    answered: int
    left: int
    own_left: int = 0
    taken: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a project. The mappings are counters by their names, and `left` is by labeller."""

    meta: Mapping[str, str]
    kinds: Mapping[str, str]
    skips: Mapping[str, str]
    open: int
    leases: int
    unscored: int
    left: Mapping[str, int]

    def of(self, name: str) -> int:
        """Return a counter of the project; 0 if nothing was counted."""
        return int(self.meta.get(name, 0))


class TaskQueue:
    """Tasks, leases and answers by project. Every method raises RedisUnavailable or StoreFull if Redis does not answer.

    Args:
        redis: Where they are.
        rules: How tasks are handed out.
        replication: How many replicas of Redis must have what is written; by default none.
    """

    def __init__(self, redis: Redis, rules: QueueRules | None = None, replication: Replication | None = None) -> None:
        self._redis: Any = redis  # redis-py's types are unions over every protocol version and decoding
        self.rules = rules or QueueRules()
        self._replication = replication or Replication(redis)

    async def projects(self) -> list[str]:
        """Return the names of all projects, in their order."""
        with redis_errors():
            return sorted(name.decode() for name in await self._redis.smembers(keys.LABELLING_PROJECTS))

    async def check_project(self, project: str) -> None:
        """Raise UnknownProject unless there is the project."""
        with redis_errors():
            is_known = bool(await self._redis.sismember(keys.LABELLING_PROJECTS, project))
        if not is_known:
            raise UnknownProject("there is no such project")

    async def make_project(self, project: str) -> None:
        """Make the project if there is none."""
        with redis_errors():
            await self._replication.run(
                "signals", keys.LABELLING_PROJECTS_BARRIER, "SADD", keys.LABELLING_PROJECTS, project
            )

    async def add(self, project: str, import_id: str, tasks: Sequence[tuple[StoredTask, int]]) -> list[bool]:
        """Add tasks with their overlaps. Returns for each whether the project had it before."""
        args: list[bytes | str | int | float] = [import_id, UNKNOWN_INFORMATION]
        for task, overlap in tasks:
            generation = b"" if task.generation is None else task.generation.SerializeToString()
            args += (task.task_id, task.new.SerializeToString(), generation, overlap, len(task.new.candidates))
        return [bool(known) for known in await self._run(_ADD, project, *args)]

    async def next(self, project: str, labeller: Labeller) -> Given:
        """Give the labeller a task: the one that the labeller has, one again, or a new one."""
        rules = self.rules
        reply = await self._run(
            _NEXT,
            project,
            *(labeller.key, labeller.name, labeller.caller, uuid.uuid4().hex, rules.lease_ms),
            *(rules.uniform_share, rules.repeat_share, secrets.randbelow(2**31)),
        )
        if reply[0] == b"none":
            return Given(None, bool(reply[1]), int(reply[2]), 0, int(reply[3]), int(reply[4]))
        lease, task, order, expires, answered, left, data, guidelines = reply[1:]
        new = labelling_pb2.NewTask.FromString(data)
        offered = Offered(lease.decode(), task.decode(), _order(order), int(expires), new, guidelines.decode())
        return Given(offered, False, int(answered), int(left))

    async def lease(self, project: str, lease_id: str) -> Lease | None:
        """Return a lease, or None if there is none of this id."""
        with redis_errors():
            found = await self._redis.hgetall(keys.labelling_prefix(project) + "lease:" + lease_id)
        if b"task" not in found:
            return None
        given = found.get(b"given")
        return Lease(
            lease_id=lease_id,
            task_id=found[b"task"].decode(),
            who=found[b"who"].decode(),
            state=found[b"state"].decode(),
            order=_order(found[b"order"]),
            probability=float(found[b"probability"]),
            is_uniform=bool(found[b"uniform"]),
            is_repeat=bool(found[b"repeat"]),
            information=float(found[b"information"]) if found[b"information"] else None,
            given=None if given is None else labelling_pb2.GivenAnswer.FromString(given),
            attempt=int(found.get(b"attempt", 0)),
        )

    async def task(self, project: str, task_id: str) -> StoredTask | None:
        """Return a task, or None if there is none of this id."""
        base = keys.labelling_prefix(project)
        with redis_errors():
            data = await self._redis.hget(base + "tasks", task_id)
            if data is None:
                return None
            new = labelling_pb2.NewTask.FromString(data)
            if not new.generation_id:
                return StoredTask(task_id, new)
            generation = await self._redis.hget(base + "generations", task_id)
        return StoredTask(task_id, new, policy_pb2.Generation.FromString(generation or b""))

    async def begin(
        self, project: str, who: str, lease_id: str, digest: str, given: labelling_pb2.GivenAnswer, candidates: int
    ) -> Begun:
        """Take an answer under a lease; `commit` or `revert` ends that.

        Args:
            project: The task's project.
            who: The key of the labeller.
            lease_id: The lease.
            digest: A digest of what the labeller said.
            given: The answer, without its task.
            candidates: How many the task has.
        """
        said = given.verdict.WhichOneof("verdict") or ""
        reply = await self._run(
            _BEGIN,
            project,
            *(who, lease_id, digest, given.SerializeToString(), "rating" if said == "ratings" else said),
            *(comparisons(candidates, given.verdict), round(1000 * given.seconds), given.verdict.skip.reason),
        )
        return cast(Begun, reply.decode())

    async def commit(self, project: str, lease_id: str) -> bool:
        """Make a pending answer an answer. Returns whether this call did it."""
        return bool(await self._run(_COMMIT, project, lease_id, self.rules.most_skips))

    async def revert(self, project: str, lease_id: str) -> None:
        """Give the labeller the task again whose answer was refused."""
        await self._run(_REVERT, project, lease_id, self.rules.lease_ms)

    async def take_back(self, project: str, labeller: Labeller) -> tuple[str, str] | Literal["taken", "none"]:
        """Begin to take back the labeller's last answer; `forget` ends that.

        Returns:
            Its lease and the one with which the task will be given again; "taken" if it is a skip and others have the
            task now; "none" if there is no answer.
        """
        reply = await self._run(_TAKE_BACK, project, labeller.key, uuid.uuid4().hex)
        if reply[0] == b"undoing":
            return reply[1].decode(), reply[2].decode()
        return "taken" if reply[0] == b"taken" else "none"

    async def forget(self, project: str, lease_id: str) -> int | None:
        """Remove an answer that is being undone.

        Returns the end of the new lease in Unix milliseconds; 0 if another call did it; None if there is no new lease.
        """
        reply = await self._run(_FORGET, project, lease_id, self.rules.lease_ms, self.rules.most_skips)
        return int(reply) if reply else None

    async def retract(self, project: str, import_id: str, answers: bool) -> tuple[int, list[str], bool]:
        """Take back some tasks of an import.

        Returns how many, the leases of the answers that must be taken back, and whether there are more tasks.
        """
        reply = await self._run(_RETRACT, project, import_id, int(answers), _RETRACTED_AT_ONCE)
        return int(reply[1]), [lease.decode() for lease in reply[2:]], bool(reply[0])

    async def inform(self, project: str, task_id: str, information: float, digest: str, aspect: str) -> None:
        """Note what the reward version of this digest expects of the answer about a task. "" is the digest of none."""
        await self._run(_INFORM, project, task_id, repr(information), digest, _STALE_AT_ONCE, aspect)

    async def unscored(self, project: str, most: int) -> list[str]:
        """Return some tasks that the reward model has not scored."""
        with redis_errors():
            found = await self._redis.srandmember(keys.labelling_prefix(project) + "unscored", most)
            return [task.decode() for task in found]

    async def pending(self, project: str, older_than_ms: int) -> list[str]:
        """Return leases whose answer was begun, or begun to be taken back, so long ago by the clock of Redis."""
        with redis_errors():
            seconds, micros = await self._redis.time()
            until = int(seconds) * 1000 + int(micros) // 1000 - older_than_ms
            found = await self._redis.zrangebyscore(
                keys.labelling_prefix(project) + "pending", "-inf", until, start=0, num=100
            )
            return [lease.decode() for lease in found]

    async def figures(self, project: str, people: Sequence[str] = ()) -> Figures:
        """Return the figures of a project, with how many tasks each of these labellers may get."""
        *counters, free, leases, unscored, left = await self._run(_LOOK, project, *people)
        meta, kinds, skips = (dict(_pairs(counter)) for counter in counters)
        return Figures(meta, kinds, skips, free, leases, unscored, dict(zip(people, left, strict=True)))

    async def person(self, project: str, who: str) -> Mapping[str, str]:
        """Return what is counted of a labeller; empty if the labeller has never asked for a task."""
        with redis_errors():
            found = await self._redis.hgetall(keys.labelling_prefix(project) + "who:" + who)
            return {name.decode(): value.decode() for name, value in found.items()}

    async def people(self, project: str) -> list[str]:
        """Return the keys of all labellers of a project."""
        with redis_errors():
            found = await self._redis.smembers(keys.labelling_prefix(project) + "people")
            return sorted(who.decode() for who in found)

    async def answers(self, project: str, after: str, most: int) -> list[tuple[str, str]]:
        """Return the places and the leases of answers after a place, oldest first. ``after`` is "" for the first."""
        with redis_errors():
            found = await self._redis.xrange(
                keys.labelling_prefix(project) + "answers", min=f"({after}" if after else "-", count=most
            )
            return [(place.decode(), fields[b"lease"].decode()) for place, fields in found]

    async def set_guidelines(self, project: str, version: str, text: str) -> None:
        """Keep a text of guidelines, and make it the present one. An empty version takes the guidelines away."""
        base, barrier = keys.labelling_prefix(project), self._barrier(project)
        with redis_errors():
            if version:
                await self._replication.run("signals", barrier, "HSET", base + "guidelines", version, text)
            await self._replication.run("signals", barrier, "HSET", base + "meta", "guidelines", version)

    async def guidelines(self, project: str, version: str) -> tuple[str, str] | None:
        """Return the text of the guidelines and their version, the present ones for "". None if there are no such."""
        base = keys.labelling_prefix(project)
        with redis_errors():
            if not version:
                version = (await self._redis.hget(base + "meta", "guidelines") or b"").decode()
            if not version:
                return "", ""
            text = await self._redis.hget(base + "guidelines", version)
            return None if text is None else (text.decode(), version)

    async def is_reachable(self) -> bool:
        """Return whether Redis answers right now."""
        with redis_errors():
            return bool(await self._redis.ping())

    def _barrier(self, project: str) -> str:
        return keys.labelling_prefix(project) + "barrier"

    async def _run(self, script: tuple[str, str], project: str, *args: bytes | str | int | float) -> Any:
        text, sha = script
        prefix, barrier = keys.labelling_prefix(project), self._barrier(project)
        with redis_errors():
            try:
                return await self._replication.run("signals", barrier, "EVALSHA", sha, 1, prefix, *args)
            except NoScriptError:
                return await self._replication.run("signals", barrier, "EVAL", text, 1, prefix, *args)


def _order(data: bytes) -> tuple[int, ...]:
    return tuple(int(index) for index in data.split())


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    for name, value in zip(flat[::2], flat[1::2], strict=True):
        yield name.decode(), value.decode()
