"""A person's signals are erased wherever a deployment keeps them, and stay erased; other people's stay as they are."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import redis as sync_redis
from redis.asyncio import Redis
from support.doors import CallersFile
from support.erasing import files_with, texts_of
from support.feedback_services import feedback_for
from support.labelling_desks import labelling
from support.signals import choice, put

from rewardloop.formats import keys
from rewardloop.formats.signals import key_of
from rewardloop.formats.store import DataRange, Manifest, ModelStore
from rewardloop.v1 import feedback_pb2, labelling_pb2, operations_pb2, policy_pb2
from rewardloop_client import (
    AsyncRewardloopClient,
    ErasureProgress,
    InvalidRequest,
    NewTask,
    PermissionDenied,
    RecordResult,
    TaughtVersions,
    UnknownErasure,
    Verdict,
)
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.annotators.crowd_file import CROWD, CrowdFile
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.data.pools.pools import PoolLimits, RoundRange
from rewardloop_trainer.data.replay import POOLS, load_replay
from rewardloop_trainer.data.weights.trust import TRUST, Trust
from rewardloop_trainer.erasure.carry_out import Eraser
from rewardloop_trainer.erasure.work_part import WorkFiles
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.reports.parts import Sample, Side
from rewardloop_trainer.rounds.bulletin.board import Board
from rewardloop_trainer.rounds.bulletin.publishing import keep_published
from rewardloop_trainer.rounds.trainer_state import RoundState

PEOPLE = ("person-alpha", "person-beta", "person-gamma")
GONE = PEOPLE[1]


class Killed(BaseException):
    """Ends an erasure as a kill does: nothing after it runs."""


def said(number: int, person: str) -> feedback_pb2.FeedbackEvent:
    """A choice whose every text names the person and the number."""
    event = choice(number, prompts=1_000_000)
    event.event_id = f"{person}-event-{number}"
    event.prompt.text = f"question {number} of {person}"
    event.responses[:] = [f"poor answer {number} to {person}", f"good answer {number} to {person}"]
    event.annotator_id = person
    event.ClearField("arrival_time")
    return event


class Place:
    """The parts of a trainer that keep signals, on a Redis of its own."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.client = sync_redis.Redis.from_url(url, socket_timeout=30)
        self.work = directory / "work"
        self.work.mkdir(exist_ok=True)
        self.store = ModelStore(directory / "models")
        self.board = Board()

    @property
    def archive(self) -> Path:
        return self.directory / "ledger"

    def eraser(self, ledger: Ledger, dies_before: str = "") -> Eraser:
        def step(name: str) -> None:
            if name == dies_before:
                raise Killed

        work = WorkFiles(self.work, ledger.held)
        return Eraser(self.client, ledger, work, self.store, step, self.board.erase)

    @contextmanager
    def consuming(self, dies_before: str = "") -> Iterator[Consumer]:
        ledger = Ledger(self.archive)
        settings = ConsumerSettings(flush_age_s=0.05, block_ms=20, maintain_every_s=0.2)
        consumer = Consumer(self.client, ledger, TrainerMetrics(), settings, erased=self.eraser(ledger, dies_before))
        stop, deaths = threading.Event(), []

        def run() -> None:
            try:
                consumer.run(stop)
            except Killed as death:
                deaths.append(death)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield consumer
            if dies_before:
                thread.join(20)
                assert deaths
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()

    def rows(self) -> list[feedback_pb2.FeedbackEvent]:
        return [row.event for row in Ledger(self.archive, writable=False).scan()]

    def fill_work(self) -> None:
        """Have pools, crowd and trust read what the ledger has, as a round does."""
        ledger = Ledger(self.archive)
        last = ledger.last_stream_id or ""
        load_replay(ledger, self.work / POOLS, RoundRange("reward", "", last), PoolLimits())
        with CrowdFile(self.work / CROWD) as file:
            file.take_in(ledger)
        kept = self.work / "rounds" / "reward-1"
        kept.mkdir(parents=True, exist_ok=True)
        people = dict.fromkeys(PEOPLE, 0.9)
        trust = Trust(people, {who: {"a=b": 0.8} for who in people}, hands={PEOPLE[0]: GONE, PEOPLE[2]: GONE})
        (kept / TRUST).write_text(trust.to_json())
        (self.work / "reports" / "reward-1" / "checks").mkdir(parents=True, exist_ok=True)
        (self.work / "reports" / "reward-1" / "checks" / "page.html").write_text(f"good answer 1 to {GONE}")
        (self.work / "checks" / "rater").mkdir(parents=True, exist_ok=True)
        (self.work / "checks" / "rater" / "work.sqlite").write_text(f"I read good answer 1 to {GONE}")


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[str]:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def place(tmp_path: Path, own_redis: str) -> Place:
    return Place(tmp_path, own_redis)


@asynccontextmanager
async def services(
    place: Place, *, spool: Path | None = None
) -> AsyncIterator[tuple[AsyncRewardloopClient, AsyncRewardloopClient]]:
    """A client that gives feedback, and one of an admin."""
    url = str(place.client.connection_pool.connection_kwargs["port"])
    redis = Redis.from_url(f"redis://127.0.0.1:{url}/0", socket_timeout=10)
    callers = CallersFile(place.directory)
    roles = {"shop": "feedback", "operator": "admin"}
    async with feedback_for(redis, callers, "shop", "operator", roles=roles, spool=spool) as (shop, operator):
        yield shop, operator
    await redis.aclose()


async def until_done(operator: AsyncRewardloopClient, erasure_id: str) -> ErasureProgress:
    deadline = time.monotonic() + 60
    while not (progress := await operator.erase(erasure_id=erasure_id)).done:
        assert time.monotonic() < deadline, progress
        await asyncio.sleep(0.1)
    return progress


async def looked(operator: AsyncRewardloopClient, person: str, caller: str | None = None) -> TaughtVersions:
    deadline = time.monotonic() + 60
    while not (found := await operator.taught_versions(annotator_id=person, caller=caller)).done:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    return found


async def archived(place: Place, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(place.rows()) != count or place.client.xlen(keys.FEEDBACK_STREAM):
        assert time.monotonic() < deadline, (len(place.rows()), count)
        await asyncio.sleep(0.05)


async def record(client: AsyncRewardloopClient, *events: feedback_pb2.FeedbackEvent) -> list[RecordResult]:
    outcomes = await client.record_batch(events)
    assert all(isinstance(each, RecordResult) for each in outcomes), outcomes
    return outcomes  # type: ignore[return-value]


def everybody(count: int = 60) -> list[feedback_pb2.FeedbackEvent]:
    return [said(number, PEOPLE[number % len(PEOPLE)]) for number in range(count)]


async def test_an_erased_person_is_in_no_file_and_all_others_are(place: Place) -> None:
    async with services(place) as (shop, operator):
        with place.consuming():
            await record(shop, *everybody())
            await archived(place, 60)
            place.fill_work()
            assert files_with(place.directory, GONE.encode())
            begun = await operator.erase(annotator_id=GONE)
            progress = await until_done(operator, begun.erasure_id)
    assert progress.holders[0].name == "trainer"
    assert progress.holders[0].erased["ledger"] == progress.holders[0].erased["signals"] == 20
    assert files_with(place.directory, GONE.encode()) == []
    left = [event for event in everybody() if event.annotator_id != GONE]
    assert [row.event_id for row in place.rows()] == [event.event_id for event in left]
    assert [texts_of(row) for row in place.rows()] == [texts_of(event) for event in left]
    trust = Trust.from_json((place.work / "rounds" / "reward-1" / TRUST).read_text())
    assert set(trust.accuracy) == {PEOPLE[0], PEOPLE[2]}
    assert trust.hands == {PEOPLE[0]: PEOPLE[0], PEOPLE[2]: PEOPLE[0]}
    with CrowdFile(place.work / CROWD) as file:
        assert {gesture.person.rpartition("\x1f")[2] for gesture in file.gestures()} == {PEOPLE[0], PEOPLE[2]}


async def test_what_operators_are_shown_and_labellers_gave_is_erased(place: Place) -> None:
    shown = operations_pb2.Round(model="reward", number=1)
    for person in (*PEOPLE, ""):
        event_id = said(1, person).event_id if person else ""
        shown.examples.add(prompt=f"question 1 of {person or GONE}", caller="shop", event_id=event_id)
    crowd = operations_pb2.Crowd(people=[{"caller": "shop", "annotator_id": person} for person in PEOPLE])
    desk = keys.labelling_prefix("wanted")

    def answer(person: str) -> bytes:
        given = labelling_pb2.GivenAnswer(labeller=person, caller="shop", comment=f"said by {person}")
        given.answer_time.GetCurrentTime()
        return given.SerializeToString()

    async with services(place) as (shop, operator):
        with place.consuming():
            await record(shop, *(said(1, person) for person in PEOPLE))
            await archived(place, 3)
            place.client.hset(keys.ROUNDS, "reward-1", shown.SerializeToString())
            place.client.set(keys.CROWD, crowd.SerializeToString())
            place.client.hset(keys.MUTES, mapping={key_of("shop", person): b"" for person in PEOPLE})
            place.client.sadd(keys.LABELLING_PROJECTS, "wanted")
            for person in PEOPLE:
                place.client.xadd(f"{desk}answers", {"lease": person[-4:]})
                place.client.hset(f"{desk}lease:{person[-4:]}", mapping={"state": "answered", "given": answer(person)})
            place.store.reports.publish("audit", "An audit", "", {}, f"<p>good answer 1 to {GONE}</p>")
            assert files_with(place.directory, GONE.encode())
            begun = await operator.erase(annotator_id=GONE)
            progress = await until_done(operator, begun.erasure_id)
    assert files_with(place.directory, GONE.encode()) == []
    counted = progress.holders[0].erased
    assert (counted["examples"], counted["people"], counted["answers"], counted["reports"]) == (2, 2, 1, 1)
    left = operations_pb2.Round.FromString(place.client.hget(keys.ROUNDS, "reward-1"))  # type: ignore[arg-type]
    assert [each.event_id for each in left.examples] == [said(1, person).event_id for person in (PEOPLE[0], PEOPLE[2])]
    assert place.client.hexists(f"{desk}lease:{PEOPLE[0][-4:]}", "given")


async def test_a_board_that_knew_texts_of_the_person_publishes_none_of_them(place: Place) -> None:
    stopped = threading.Event()
    stopped.set()
    samples = [
        Sample(
            f"question 1 of {person}", [Side("over", f"answer to {person}")], signal=key_of("shop", f"{person}-event-1")
        )
        for person in PEOPLE
    ]
    async with services(place) as (shop, operator):
        with place.consuming():
            await record(shop, *(said(1, person) for person in PEOPLE))
            await archived(place, 3)
            place.board.lead("t1")
            place.board.reached("reward", RoundState(1, "training", "", "9-0", 3, 3, 1, started_at=time.time() - 60))
            place.board.refused("reward", 1, [], samples)
            crowd = operations_pb2.Crowd(people=[{"caller": "shop", "annotator_id": person} for person in PEOPLE])
            place.board.knows(crowd, time.time() - 60)
            begun = await operator.erase(annotator_id=GONE)
            await until_done(operator, begun.erasure_id)
            place.board.refused("reward", 1, [], samples)  # the round under way has them in memory
            keep_published(place.client, place.board, stopped)
    (shown,) = place.client.hgetall(keys.ROUND_DETAILS).values()  # type: ignore[union-attr]
    assert GONE.encode() not in shown
    assert PEOPLE[0].encode() in shown
    known = operations_pb2.Crowd.FromString(place.client.get(keys.CROWD))  # type: ignore[arg-type]
    assert [each.annotator_id for each in known.people] == [PEOPLE[0], PEOPLE[2]]
    assert files_with(place.directory, GONE.encode()) == []


@pytest.mark.parametrize("step", ["find", "register", "redis", "ledger", "work", "shown", "files of redis", "report"])
async def test_an_erasure_that_is_killed_goes_on_at_the_next_start(place: Place, step: str) -> None:
    async with services(place) as (shop, operator):
        with place.consuming():
            await record(shop, *everybody())
            await archived(place, 60)
            place.fill_work()
        begun = await operator.erase(annotator_id=GONE)
        with place.consuming(dies_before=step):
            pass
        assert not (await operator.erase(erasure_id=begun.erasure_id)).done
        with place.consuming():
            progress = await until_done(operator, begun.erasure_id)
            assert (await record(shop, said(1, GONE)))[0].erased
    assert progress.holders[0].erased["signals"] == 20
    assert files_with(place.directory, GONE.encode()) == []
    assert len(place.rows()) == 40


async def test_erased_signals_stay_erased_and_new_ones_of_the_person_are_taken(place: Place) -> None:
    async with services(place) as (shop, operator):
        with place.consuming():
            await record(shop, *everybody())
            await archived(place, 60)
            backup = Ledger(place.archive, writable=False)
            rows = list(backup.scan())
            await until_done(operator, (await operator.erase(annotator_id=GONE)).erasure_id)
            again = await record(shop, *everybody())  # as a repeated import sends them
            assert [each.erased for each in again] == [event.annotator_id == GONE for event in everybody()]
            assert all(each.duplicate for each in again)
            put(place.client, *(row.event for row in rows if row.event.annotator_id == GONE))  # past the server
            await asyncio.sleep(1)
            assert len(place.rows()) == 40
            assert files_with(place.directory, GONE.encode())  # Redis writes its file anew a little later
            await asyncio.sleep(10)  # clocks of servers may differ by so much
            assert files_with(place.directory, GONE.encode()) == []
            assert not (await record(shop, said(900, GONE)))[0].duplicate
            await archived(place, 41)


async def test_a_ledger_that_is_put_back_is_erased_again(place: Place) -> None:
    async with services(place) as (shop, operator):
        with place.consuming():
            await record(shop, *everybody())
            await archived(place, 60)
        old = {path.name: path.read_bytes() for path in place.archive.glob("*.parquet")}
        with place.consuming():
            begun = await operator.erase(annotator_id=GONE)
            await until_done(operator, begun.erasure_id)
        for path in place.archive.glob("*.parquet"):
            path.unlink()
        for name, data in old.items():
            (place.archive / name).write_bytes(data)
        (place.archive / "erased.json").unlink()  # the copy is older than the erasure
        with place.consuming():
            await archived(place, 40)
    assert files_with(place.directory, GONE.encode()) == []


async def test_a_redis_that_lost_everything_learns_the_erasures_from_the_ledger(place: Place) -> None:
    async with services(place) as (shop, operator):
        with place.consuming():
            await record(shop, *everybody())
            await archived(place, 60)
            begun = await operator.erase(annotator_id=GONE)
            await until_done(operator, begun.erasure_id)
        place.client.flushall()
        with place.consuming():
            while not place.client.hexists(keys.ERASURES, begun.erasure_id):  # noqa: ASYNC110 - the trainer reads it
                await asyncio.sleep(0.05)
            await until_done(operator, begun.erasure_id)
            await asyncio.sleep(1.2)  # a server follows within a second
            assert (await record(shop, said(1, GONE)))[0].erased


async def test_dead_letters_counts_and_generations_of_the_person_are_gone(place: Place) -> None:
    letters = [said(1, GONE).SerializeToString(), said(2, PEOPLE[0]).SerializeToString()]
    letters.append(b"\xff\xff" + said(3, GONE).SerializeToString())  # no event any more
    for data in letters:
        place.client.xadd(keys.DEAD_LETTERS, {keys.DEAD_EVENT_FIELD: data, keys.DEAD_REASON_FIELD: "x"})
    mine, theirs = said(10, GONE), said(11, GONE)
    other = said(12, PEOPLE[0])
    for event, generation in ((mine, "gen-mine"), (theirs, "gen-shared"), (other, "gen-shared")):
        event.generation_id = generation
        place.client.set(keys.GENERATION + generation, f"texts for {generation}")
        place.client.sadd(keys.judged_key(generation, event.annotator_id, event.source, ""), 1)
    put(place.client, mine, theirs, other)
    async with services(place) as (_, operator):
        with place.consuming():
            await until_done(operator, (await operator.erase(annotator_id=GONE)).erasure_id)
    assert [fields[keys.DEAD_EVENT_FIELD.encode()] for _, fields in place.client.xrange(keys.DEAD_LETTERS)] == letters[
        1:2
    ]
    assert not place.client.exists(keys.GENERATION + "gen-mine")
    assert place.client.exists(keys.GENERATION + "gen-shared")
    assert not place.client.exists(keys.judged_key("gen-mine", GONE, mine.source, ""))
    assert place.client.exists(keys.judged_key("gen-shared", PEOPLE[0], other.source, ""))
    assert files_with(place.directory, GONE.encode()) == []


async def test_a_generation_is_erased_with_every_signal_about_it(place: Place) -> None:
    events = [said(1, PEOPLE[0]), said(2, PEOPLE[2]), said(3, PEOPLE[0])]
    for event, generation in zip(events, ("gen-a", "gen-a", "gen-b"), strict=True):
        event.generation_id = generation
        place.client.set(keys.GENERATION + generation, "texts")
    put(place.client, *events)
    async with services(place) as (_, operator):
        with place.consuming():
            await archived(place, 3)
            await until_done(operator, (await operator.erase(generation_id="gen-a")).erasure_id)
    assert [row.event_id for row in place.rows()] == [events[2].event_id]
    assert [place.client.exists(keys.GENERATION + each) for each in ("gen-a", "gen-b")] == [0, 1]
    assert files_with(place.directory, b"gen-a") == []


async def test_no_file_holds_a_text_of_an_erased_generation_that_labellers_got(place: Place) -> None:
    about = {name: policy_pb2.Generation(generation_id=name) for name in ("gen-gone", "gen-kept")}
    for name, generation in about.items():
        generation.prompt.text = f"the question of {name}"
        for text in (f"an answer of {name}", f"another answer of {name}"):
            generation.candidates.add(text=text, token_count=1)
    port = place.client.connection_pool.connection_kwargs["port"]
    async with Redis.from_url(f"redis://127.0.0.1:{port}/0") as redis, labelling(redis) as desk:
        for generation in about.values():
            await desk.generations.put(generation)
        tasks = [NewTask(kinds=["edit"], generation_id=name) for name in about]
        await desk.client.labelling.add_tasks("shop", tasks, import_id="i1")
        for who in ("ada", "ben"):
            task = (await desk.client.labelling.next_task("shop", labeller=who)).task
            assert task is not None
            better = Verdict.edit(f"better: {task.prompt.text}")
            await desk.client.labelling.answer("shop", task.lease_id, better, labeller=who, comment=task.prompt.text)
    assert files_with(place.directory, b"of gen-gone")
    async with services(place) as (_, operator):
        with place.consuming():
            await archived(place, 2)
            await until_done(operator, (await operator.erase(generation_id="gen-gone")).erasure_id)
    assert files_with(place.directory, b"gen-gone") == []
    assert files_with(place.directory, b"of gen-kept")


async def test_only_one_callers_annotator_is_erased_if_the_caller_is_named(place: Place) -> None:
    events = [said(1, GONE), said(2, GONE), said(3, GONE)]
    for event, caller in zip(events, ("shop", "other", ""), strict=True):
        event.caller = caller
    put(place.client, *events)
    async with services(place) as (_, operator):
        with place.consuming():
            await archived(place, 3)
            await until_done(operator, (await operator.erase(annotator_id=GONE, caller="shop")).erasure_id)
            assert [row.caller for row in place.rows()] == ["other", ""]
            await until_done(operator, (await operator.erase(annotator_id=GONE, caller="")).erasure_id)
            assert [row.caller for row in place.rows()] == ["other"]
            await until_done(operator, (await operator.erase(annotator_id=GONE)).erasure_id)
    assert place.rows() == []


async def test_versions_that_learned_and_their_descendants_are_named(place: Place) -> None:
    def publish(parent: str | None, last: str, **notes: str) -> None:
        data = DataRange("1-0", last, 1) if last else None
        place.store.publish(Manifest("reward", parent=parent, data=data, notes=notes), lambda path: None)

    ledger = Ledger(place.archive)
    ledger.append([_recorded(f"{place_}-0", said(place_, who)) for place_, who in ((5, PEOPLE[0]), (10, GONE))])
    for parent, last in ((None, ""), ("1", "9-0"), ("2", "10-0"), ("3", "20-0")):
        publish(parent, last)
    publish("2", "20-0", erasures="1")  # its round began after the erasure
    publish("4", "20-0", erasures="1")
    async with services(place) as (_, operator):
        assert not (await operator.taught_versions(annotator_id=GONE)).done  # nobody keeps the ledger yet
        with place.consuming():
            before = await looked(operator, GONE)
            of_others = [await looked(operator, GONE, "another"), await looked(operator, "nobody")]
            assert len(place.rows()) == 2
            progress = await until_done(operator, (await operator.erase(annotator_id=GONE)).erasure_id)
    assert [(each.signals, each.versions) for each in of_others] == [(0, ())] * 2
    assert (before.signals, set(before.versions)) == (1, set(progress.versions))
    named = {(each.version, each.directly) for each in progress.versions if each.model == "reward"}
    assert named == {("3", True), ("4", True), ("6", False)}
    assert files_with(place.directory, GONE.encode()) == []


def _recorded(stream_id: str, event: feedback_pb2.FeedbackEvent) -> Recorded:
    event.arrival_time.FromMilliseconds(1_700_000_000_000)
    return Recorded(stream_id, event)


async def test_what_a_server_spooled_is_erased_before_it_reaches_the_stream(place: Place, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    async with services(place, spool=spool) as (shop, operator):
        place.client.config_set("maxmemory", "1")  # Redis refuses writes
        await record(shop, *everybody(30))
        assert files_with(spool, GONE.encode())
        place.client.config_set("maxmemory", "0")
        with place.consuming():
            begun = await operator.erase(annotator_id=GONE)
            progress = await until_done(operator, begun.erasure_id)
            await archived(place, 20)
    assert {holder.name.split()[0] for holder in progress.holders} == {"trainer", "spool"}
    assert files_with(place.directory, GONE.encode()) == []


async def test_only_admins_erase_and_nobody_is_named_in_the_audit_log(place: Place) -> None:
    async with services(place) as (shop, operator):
        for method in (shop.erase, shop.taught_versions):
            with pytest.raises(PermissionDenied):
                await method(annotator_id=GONE)
        with pytest.raises(UnknownErasure):
            await operator.erase(erasure_id="never")
        for wrong in ({}, {"annotator_id": "a" * 129}, {"annotator_id": "a", "generation_id": "b"}):
            with pytest.raises(InvalidRequest):
                await operator.erase(**wrong)  # type: ignore[arg-type]
            with pytest.raises(InvalidRequest):
                await operator.taught_versions(**wrong)  # type: ignore[arg-type]
        await operator.taught_versions(annotator_id=GONE)
        begun = await operator.erase(annotator_id=GONE)
        assert (await operator.erase(annotator_id=GONE)).erasure_id == begun.erasure_id  # it is under way
        assert not begun.done
    audit = (place.directory / "audit.jsonl").read_text()
    assert audit.count('"began"') >= 3
    assert GONE not in audit
    assert place.client.hget(keys.ERASURES, begun.erasure_id).split(b'"digest": "')[1][:32].decode() in audit


def test_the_byte_search_sees_what_is_compressed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.append([_recorded("1-0", said(1, GONE))])
    (tmp_path / "a.gz").write_bytes(gzip.compress(GONE.encode()))
    assert pq.read_table(next((tmp_path / "ledger").glob("*.parquet"))).num_rows == 1
    assert {path.suffix for path in files_with(tmp_path, GONE.encode())} == {".gz", ".parquet"}
