"""Each fault of the table, one after another, in one world; `python tests/faults/run.py` prints the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from faults.catalogue import ALL
from faults.table import Fault, observe
from faults.world import World, until, world

from rewardloop.formats import keys
from rewardloop_trainer.archive.ledger import Ledger

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.mark.parametrize("fault", ALL, ids=[fault.inject.__name__ for fault in ALL])
def test_callers_are_told_the_truth_and_nothing_is_lost_or_doubled(shared: World, fault: Fault) -> None:
    row = observe(shared, fault)
    print(row)
    assert row.is_well, f"{row}\n{row.unexpected}"


def test_after_all_of_it_the_ledger_has_every_acknowledged_signal_once(shared: World) -> None:
    shared.callers.pause_recording()
    until(shared.is_archived)
    archived = Counter(Ledger(shared.archive, writable=False).event_ids())
    assert set(shared.callers.acknowledged) <= set(archived)
    assert max(archived.values()) == 1
    with shared.client() as client:
        assert client.xlen(keys.DEAD_LETTERS) == 0
