"""The trainer's composition root: builds every part, starts it, and stops it on SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import redis
import structlog

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.formats.signatures import UnusableKey, signer, trusted_keys
from rewardloop.formats.store import ModelStore, StoreError
from rewardloop.process.disk_metrics import DiskCollector
from rewardloop.process.metrics_page import CannotListen, serve_metrics
from rewardloop.v1 import operations_pb2
from rewardloop_client import RewardloopClient
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.dead_letters import LetterBounds
from rewardloop_trainer.archive.fence import Fence, Fenced
from rewardloop_trainer.archive.identity import OtherArchive
from rewardloop_trainer.archive.leader import LeaderLock
from rewardloop_trainer.archive.ledger import CorruptSegment, Ledger
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES, connect_redis_until
from rewardloop_trainer.erasure.carry_out import Eraser
from rewardloop_trainer.erasure.work_part import WorkFiles
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.reward.heads.choice import HeadChoice
from rewardloop_trainer.rounds.bulletin.board import Board
from rewardloop_trainer.rounds.bulletin.publishing import keep_published, published_rounds
from rewardloop_trainer.rounds.current_round import CurrentRound
from rewardloop_trainer.rounds.first_model import refusal_of_trainer
from rewardloop_trainer.rounds.live_pointer import keep_pointers, live_version
from rewardloop_trainer.rounds.loop import Learner, Loop, LoopSettings
from rewardloop_trainer.rounds.pauses import ServerAway
from rewardloop_trainer.rounds.trainer_state import CorruptState, StateFile
from rewardloop_trainer.rounds.unread_signals import UnreadSignals
from rewardloop_trainer.server_access import open_client
from rewardloop_trainer.settings import TrainSettings
from rewardloop_trainer.vocabulary import Outcome

if TYPE_CHECKING:  # OpenTelemetry is not installed unless tracing is on
    from rewardloop_trainer.tracing import TrainerTracing

log = structlog.get_logger()

# Exit statuses.
STOPPED, FAILED, ROUNDS_FAILED = 0, 1, 3


def run(settings: TrainSettings, is_traced: bool = False) -> int:
    """Learn until stopped. Returns the exit status, which `rewardloop_trainer.app` explains."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    metrics = TrainerMetrics(further_models=tuple(settings.reward_models))
    places = {"store": settings.store, "ledger": settings.archive, "work": str(settings.work_dir)}
    metrics.registry.register(DiskCollector(places))
    try:
        serve_metrics(settings.metrics_port, settings.metrics_host, metrics.registry)
    except CannotListen as error:
        log.critical("the metrics page cannot be served", port=settings.metrics_port, reason=str(error))
        return FAILED
    client = connect_redis_until(settings.redis_url, stop)
    if client is None:
        return STOPPED
    if reason := _ignored_settings(settings, client):
        log.critical("the trainer does not start", reason=reason)
        return FAILED
    fence = Fence(settings.archive)
    lock = LeaderLock(client, settings.lock_ttl_s, fence.read)
    if not lock.wait(stop):
        return STOPPED
    metrics.leading.set(1)
    try:
        fence.advance(lock.epoch)
        return _lead(settings, client, lock, fence, metrics, stop, _tracing(is_traced))
    except Fenced as error:
        log.critical("the trainer stops: another one leads", reason=str(error))
        return FAILED
    except OtherArchive as error:
        log.critical("the trainer does not start: the archive is another one", reason=str(error))
        return FAILED
    except (CorruptSegment, CorruptState) as error:
        log.critical("the trainer stops: repair or remove this file", reason=str(error))
        return FAILED
    finally:
        lock.release()
        client.close()


def _ignored_settings(settings: TrainSettings, client: redis.Redis) -> str:
    """Return why settings of a first reward model are refused, if the store has one that differs; else an empty text.

    Settings that cannot be compared with a version are only logged.
    """
    store = ModelStore(settings.store)
    try:
        version = live_version(client, store, REWARD)
    except (ServerAway, *REDIS_FAILURES) as error:
        log.warning("the live version is not known: the newest is compared with the settings", error=str(error))
        version = str(found[-1]) if (found := store.versions(REWARD)) else None
    if version is None:
        return ""
    if unread := sorted(settings.reward.model_fields_set & {"pooling", *HeadChoice.model_fields}):
        log.info("settings of a first reward model have no effect: there is one", settings=unread, live=version)
    try:
        return refusal_of_trainer(settings.reward, store.manifest(REWARD, version), settings.store)
    except StoreError as error:  # the round that starts from it says so
        log.warning("the live version cannot be read", version=version, error=str(error))
        return ""


def _lead(
    settings: TrainSettings,
    client: redis.Redis,
    lock: LeaderLock,
    fence: Fence,
    metrics: TrainerMetrics,
    stop: threading.Event,
    tracing: TrainerTracing | None,
) -> int:
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(settings.archive, fence=fence)
    state_file = StateFile(settings.work_dir, fence)
    state_file.hold_to(ledger)
    state_file.keep_within(ledger.last_stream_id or "")
    failures: list[BaseException] = []
    board = Board()
    board.remember(_known_rounds(client))
    with open_client(settings, settings.server, lane="trainer", tracing=tracing is not None) as server:
        loop = Loop(
            _learners(settings, client, ledger, metrics, server, stop),
            ledger,
            state_file,
            metrics,
            stop,
            LoopSettings(
                settings.work_dir,
                seed=settings.seed,
                retry_first_s=settings.retry_first_s,
                max_deaths=settings.max_round_deaths,
            ),
            tracing=tracing,
            board=board,
        )
        consumer = _consumer(settings, client, ledger, metrics, loop, tracing, board)
        threads = [
            _start("consumer", lambda: consumer.run(stop), stop, failures),
            _start("leader-watch", lambda: _until_lost(lock, stop), stop, failures),
            _start("bulletin", lambda: keep_published(client, board, stop), stop, failures),
            _start("pointer-copy", lambda: keep_pointers(client, ModelStore(settings.store), stop), stop, failures),
        ]
        log.info("leading", epoch=lock.epoch, ledger_rows=ledger.row_count, archive=settings.archive)
        try:
            _import_rounds(settings)
            loop.run(
                max_rounds=settings.max_rounds or None,
                ends=lambda: settings.once and _is_drained(consumer),
            )
        finally:
            stop.set()
            loop.arrived.set()
            for thread in threads:
                thread.join()
    for failure in failures:
        log.critical("the trainer stops", exc_info=failure)
    if lock.lost.is_set() or failures:
        return FAILED
    return _conclude(settings, ledger, loop)


def _consumer(
    settings: TrainSettings,
    client: redis.Redis,
    ledger: Ledger,
    metrics: TrainerMetrics,
    loop: Loop,
    tracing: TrainerTracing | None,
    board: Board,
) -> Consumer:
    work, store = WorkFiles(settings.work_dir, ledger.held), ModelStore(settings.store)
    eraser = Eraser(client, ledger, work, store, forget_shown=board.erase)
    archiving = _archiving(settings)
    return Consumer(client, ledger, metrics, archiving, on_archived=loop.arrived.set, tracing=tracing, erased=eraser)


def _known_rounds(client: redis.Redis) -> list[operations_pb2.Round]:
    """Return the rounds that an earlier process published; none if Redis cannot be asked now."""
    try:
        return list(published_rounds(client).values())
    except REDIS_FAILURES as error:
        log.warning("the rounds that were published are not known", error=str(error))
        return []


def _archiving(settings: TrainSettings) -> ConsumerSettings:
    return ConsumerSettings(
        settings.flush_rows,
        settings.flush_age_s,
        max_bytes=settings.flush_mib * 2**20,
        max_entry_bytes=settings.max_signal_mib * 2**20,
        letters=LetterBounds(settings.dead_letters, settings.dead_letters_mib * 2**20),
    )


def _conclude(settings: TrainSettings, ledger: Ledger, loop: Loop) -> int:
    """Log what became of the rounds, and return the exit status."""
    ended = {f"rounds_{outcome}": count for outcome, count in sorted(loop.ended.items())}
    if settings.once and loop.has_failed:
        log.error("stopped: a round failed", ledger_rows=ledger.row_count, **ended)
        return ROUNDS_FAILED
    log.info("stopped", ledger_rows=ledger.row_count, **ended)
    return STOPPED


def _tracing(is_on: bool) -> TrainerTracing | None:
    if not is_on:
        return None
    from rewardloop_trainer.tracing import TrainerTracing

    return TrainerTracing()


def _learners(
    settings: TrainSettings,
    client: redis.Redis,
    ledger: Ledger,
    metrics: TrainerMetrics,
    server: RewardloopClient,
    stop: threading.Event,
) -> list[Learner]:
    try:
        store = ModelStore(
            settings.store, signer=signer(settings.signing_key), trusted=trusted_keys(settings.trusted_keys)
        )
    except UnusableKey as error:
        raise SystemExit(f"rewardloop train: {error}") from error

    def reward(current: CurrentRound) -> Outcome:
        from rewardloop_trainer.rounds.reward_round import RewardRound

        return RewardRound(settings, store, ledger, client, server, metrics, stop, current).run()

    def policy(current: CurrentRound) -> Outcome:
        from rewardloop_trainer.rounds.policy_round import PolicyRound

        return PolicyRound(settings, store, ledger, client, server, metrics, stop, current).run()

    learners = []
    if settings.reward_rounds:
        started_by = (settings.reward_min_signals, settings.reward_max_interval_s)
        for name in (REWARD, *settings.reward_models):
            unread = UnreadSignals(name, store, client, ledger, metrics)
            learners.append(Learner(name, *started_by, reward, unread.count))
    if settings.policy_rounds and store.versions("policy"):
        unread = UnreadSignals(POLICY, store, client, ledger, metrics)
        started_by = (settings.policy_min_signals, settings.policy_max_interval_s)
        learners.append(Learner(POLICY, *started_by, policy, unread.count))
    return learners


def _import_rounds(settings: TrainSettings) -> None:
    """Import torch and what it needs. That takes seconds, in which signals are archived and no round waits yet."""
    if settings.reward_rounds:
        import rewardloop_trainer.rounds.reward_round
    if settings.policy_rounds:
        import rewardloop_trainer.rounds.policy_round  # noqa: F401


def _start(
    name: str, work: Callable[[], None], stop: threading.Event, failures: list[BaseException]
) -> threading.Thread:
    """Run ``work`` in a thread. An exception in it stops the whole process, which would be half alive otherwise."""

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
            stop.set()

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread


def _until_lost(lock: LeaderLock, stop: threading.Event) -> None:
    while not stop.wait(0.2):
        if lock.lost.is_set():
            stop.set()


def _is_drained(consumer: Consumer) -> bool:
    try:
        return consumer.drained()
    except REDIS_FAILURES as error:
        log.warning("Redis does not answer", error=str(error))
        return False
