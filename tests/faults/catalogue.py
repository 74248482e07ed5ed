"""The whole table: faults injected here, and those that have a test of their own."""

from __future__ import annotations

# Their functions register themselves in this order.
from faults import redis_faults  # noqa: F401  # isort: skip
from faults import process_faults  # noqa: F401  # isort: skip
from faults import model_faults  # noqa: F401  # isort: skip
from faults.table import FAULTS, Fault

ALL: tuple[Fault, ...] = tuple(FAULTS)

# What is injected, what a caller sees, and the test that injects it and counts.
ELSEWHERE: tuple[tuple[str, str, str], ...] = (
    (
        "the server is killed 3 times under load",
        "UNAVAILABLE until it is back",
        "tests/e2e/test_kill.py::test_server_killed_under_load_loses_and_doubles_no_acknowledged_signal",
    ),
    (
        "Redis is killed in the middle of an import",
        "the import waits and goes on",
        "tests/e2e/test_kill.py::test_redis_killed_during_an_import_loses_and_doubles_no_row",
    ),
    (
        "the trainer is killed 5 times, between a segment and its acknowledgement, too",
        "nothing",
        "tests/e2e/test_trainer_kill.py::test_trainer_killed_five_times_archives_every_signal_once",
    ),
    (
        "the trainer is stopped with unwritten signals, overtaken, and wakes up",
        "nothing; the woken one writes nothing",
        "tests/e2e/test_trainer_overtaken.py",
    ),
    (
        "one of 3 replicas is killed, 10 times",
        "no failed call",
        "tests/e2e/test_replicas.py",
    ),
    (
        "the master of three sentinels is killed",
        "REDIS_UNAVAILABLE until another leads",
        "tests/integration/test_redis_kinds.py::test_signals_and_pointer_outlive_a_failover",
    ),
    (
        "the same, and its replica lags",
        "REDIS_UNAVAILABLE for each signal and rollback that the replica lacks",
        "tests/integration/test_failover.py",
    ),
    (
        "twenty rollbacks meet failovers, data loss, races and restarts of trainers",
        "nothing; all of them stand",
        "tests/faults/test_rollbacks_stand.py",
    ),
    (
        "a server starts while Redis is away",
        "nothing in scoring; the store's copy of the pointer is followed",
        "tests/integration/test_durability.py",
    ),
    (
        "a signal kills whoever reads it",
        "nothing; it becomes a dead letter",
        "tests/integration/test_consume_faults.py",
    ),
    (
        "a round kills its trainer again and again",
        "nothing; it is given up",
        "tests/integration/test_loop_deaths.py",
    ),
    (
        "the policy worker is killed under load",
        "POLICY_UNAVAILABLE until it is back; scoring and feedback go on",
        "tests/e2e/test_policy_kill.py",
    ),
)
