"""Erases signals from what operators are shown and from what labellers gave: Redis beside the stream, and reports."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from typing import Any

import redis
from google.protobuf.message import DecodeError

from rewardloop.formats import keys
from rewardloop.formats.erasing.erasures import Erasures
from rewardloop.formats.labelling.scripts import PLACES
from rewardloop.formats.signals import parts_of
from rewardloop.formats.storing.report_shelf import ReportError, ReportShelf
from rewardloop.v1 import labelling_pb2, operations_pb2
from rewardloop_trainer.erasure.redis_part import entries
from rewardloop_trainer.erasure.shown_texts import drop_erased_examples, drop_erased_people

_ERASE_TASKS = PLACES + "\n" + files(__package__).joinpath("erase_tasks.lua").read_text("utf-8")


def erase_shown(client: redis.Redis, erasures: Erasures, reports: ReportShelf) -> Counter[str]:
    """Delete examples of erased signals and what is said of erased people, and every report, which may hold texts.

    Args:
        client: Redis.
        erasures: Which signals and people.
        reports: The reports of the model store.

    Returns:
        How many things are gone, by what they were.

    Raises:
        redis.RedisError: If Redis does not answer.
        OSError: If the model store cannot be written.
    """
    try:
        gone = Counter(reports=reports.clear())
    except ReportError as error:
        raise OSError(str(error)) from error
    gone["examples"] = _erase_examples(client, erasures)
    gone["people"] = _erase_people(client, erasures)
    gone["answers"] = _erase_answers(client, erasures)
    gone["tasks"] = _erase_tasks(client, erasures)
    return gone


def _erase_examples(client: Any, erasures: Erasures) -> int:
    """Delete the examples of erased signals, and those that do not say of which signal they are."""
    gone = 0
    for name in (keys.ROUNDS, keys.ROUND_DETAILS):  # earlier releases have examples in the first
        for field, data in client.hgetall(name).items():
            try:
                shown = operations_pb2.Round.FromString(data)
            except DecodeError:
                client.hdel(name, field)
                continue
            if count := drop_erased_examples(shown, erasures):
                gone += count
                client.hset(name, field, shown.SerializeToString())
    return gone


def _erase_people(client: Any, erasures: Erasures) -> int:
    gone = 0
    if (data := client.get(keys.CROWD)) is not None:
        try:
            crowd = operations_pb2.Crowd.FromString(data)
        except DecodeError:
            client.delete(keys.CROWD)
        else:
            if gone := drop_erased_people(crowd, erasures):
                client.set(keys.CROWD, crowd.SerializeToString())
    for person in client.hkeys(keys.MUTES):
        caller, annotator_id = parts_of(person.decode())
        if erasures.of_person(annotator_id, caller):
            gone += int(client.hdel(keys.MUTES, person))
    return gone


def _erase_answers(client: Any, erasures: Erasures) -> int:
    """Delete what erased people answered about labelling tasks, and their names. That tasks were answered stays."""
    gone, of_generations = 0, any(each.kind == "generation" for each in erasures.all)
    for name in client.smembers(keys.LABELLING_PROJECTS):
        project = keys.labelling_prefix(name.decode())
        answered = (fields[b"lease"] for _, fields in entries(client, f"{project}answers"))
        for lease in {*answered, *client.zrange(f"{project}pending", 0, -1)}:
            place = f"{project}lease:{lease.decode()}"
            data, task = client.hmget(place, "given", "task")
            if data is None:
                continue
            try:
                given = labelling_pb2.GivenAnswer.FromString(data)
            except DecodeError:
                given = labelling_pb2.GivenAnswer()
            answered_s = given.answer_time.ToNanoseconds() / 1e9
            generation_id = _generation_of(client, project, task) if of_generations else ""
            if not given.labeller or erasures.of_ids(given.labeller, generation_id, given.caller, answered_s):
                gone += _erase_answer(client, project, place)
        _erase_labellers(client, project, erasures)
    return gone


def _erase_tasks(client: Any, erasures: Erasures) -> int:
    """Delete the tasks about erased generations, which hold their texts. Nobody gets them any more."""
    gone = 0
    if not any(each.kind == "generation" for each in erasures.all):
        return gone
    for name in client.smembers(keys.LABELLING_PROJECTS):
        project = keys.labelling_prefix(name.decode())
        about = ((task, _generation_of(client, project, task)) for task in client.hkeys(f"{project}tasks"))
        for task in [task for task, generation_id in about if erasures.of_generation(generation_id)]:
            gone += int(client.eval(_ERASE_TASKS, 1, project, task))
    return gone


def _generation_of(client: Any, project: str, task: bytes | None) -> str:
    """Return the generation that a task is about; "" if it names none, or is gone."""
    data = client.hget(f"{project}tasks", task) if task else None
    try:
        return str(labelling_pb2.NewTask.FromString(data or b"").generation_id)
    except DecodeError:
        return ""


def _erase_answer(client: Any, project: str, place: str) -> int:
    """Delete an answer, and the words of its reason among the project's. Returns 0 if it was gone already."""
    state, reason = client.hmget(place, "state", "reason")
    is_counted = bool(reason) and state in (b"answered", b"undoing")
    with client.pipeline(transaction=True) as commands:
        commands.hdel(place, "given", "reason")
        if is_counted:
            commands.hincrby(f"{project}skips", reason, -1)
        done = commands.execute()
    if is_counted and int(done[1]) <= 0:
        client.hdel(f"{project}skips", reason)
    return int(int(done[0]) > 0)


def _erase_labellers(client: Any, project: str, erasures: Erasures) -> None:
    """Delete the names of erased people from their counts. Who labels again is named again."""
    for who in client.smembers(f"{project}people"):
        counts = f"{project}who:{who.decode()}"
        name, caller = (each.decode() if each else "" for each in client.hmget(counts, "labeller", "caller"))
        if erasures.of_person(name, caller):
            client.hdel(counts, "labeller")
