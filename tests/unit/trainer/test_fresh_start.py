"""A round starts from the base when the signals have grown, and from the live version otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from rewardloop.formats.manifest import DataRange, Manifest
from rewardloop.formats.store_errors import VersionNotFound
from rewardloop_trainer.rounds.fresh_start import (
    FRESH_SIGNALS,
    RowsThrough,
    choose_start,
    fresh_records,
    learned_from_own_answers,
)


@dataclass
class Versions:
    """Manifests by version, in the place of a model store."""

    manifests: dict[str, Manifest]

    def manifest(self, model: str, version: str) -> Manifest:
        if version not in self.manifests:
            raise VersionNotFound(version)
        return replace(self.manifests[version], version=version)

    def remembered(self, model: str, version: str) -> Manifest:
        return self.manifest(model, version)

    def versions(self, model: str) -> list[int]:
        return sorted(map(int, self.manifests))


BASE = Manifest("reward", "1")


def trained(parent: str | None, fresh: int | None) -> Manifest:
    notes = {} if fresh is None else {FRESH_SIGNALS: str(fresh)}
    return Manifest("reward", parent=parent, data=DataRange("1-0", "2-0", 10), notes=notes)


STORE = Versions({"1": BASE, "2": trained("1", 1_000), "3": trained("2", 1_000)})


def ledger(lost: int = 0) -> RowsThrough:
    """A ledger whose stream ids count its signals, without so many of the oldest."""
    return lambda stream_id: max(0, int(stream_id.partition("-")[0]) - lost)


@pytest.mark.parametrize(
    ("signals", "version", "is_fresh"), [(1_400, "3", False), (1_500, "1", True), (9_000, "1", True)]
)
def test_a_start_from_the_base_is_due_when_signals_have_grown(signals: int, version: str, is_fresh: bool) -> None:
    chosen = choose_start(STORE, "3", signals, 1.5, ledger())
    assert (chosen.version, chosen.is_fresh) == (version, is_fresh)


@pytest.mark.parametrize(("signals", "is_fresh"), [(1_600, False), (2_249, False), (2_250, True)])
def test_after_a_start_whose_version_is_not_live_signals_have_to_grow_again(signals: int, is_fresh: bool) -> None:
    chosen = choose_start(STORE, "3", signals, 1.5, ledger(), "1500-0")
    assert chosen.is_fresh is is_fresh
    assert "1500 of the last fresh start, which is not live" in chosen.reason or is_fresh


@pytest.mark.parametrize("fresh_until", ["1500-0", ""])
def test_signals_that_the_ledger_lost_since_a_start_do_not_have_to_come_again(fresh_until: str) -> None:
    """Of the signals of the last start 1,000 were erased; half as many as were left have come since."""
    made = Manifest("reward", parent="1", data=DataRange("1-0", "1500-0", 1_500), notes={FRESH_SIGNALS: "1500"})
    noted = replace(made, notes={**made.notes, "start": "1500 signals"})
    store = Versions({"1": BASE, "3": trained("1", None) if fresh_until else noted})
    lost = ledger(1_000)
    assert not choose_start(store, "3", lost("1749-0"), 1.5, lost, fresh_until).is_fresh
    assert choose_start(store, "3", lost("1750-0"), 1.5, lost, fresh_until).is_fresh
    assert not choose_start(store, "3", 1_750, 1.5, ledger(), fresh_until).is_fresh


def test_a_line_whose_last_start_is_forgotten_goes_by_the_number_that_its_version_notes() -> None:
    assert not choose_start(STORE, "3", 1_499, 1.5, ledger(5_000)).is_fresh
    assert choose_start(STORE, "3", 1_500, 1.5, ledger(5_000)).is_fresh


def test_a_ledger_that_drops_its_oldest_signals_does_not_stop_starts_from_the_base() -> None:
    """It always has 1,000 signals: a start is due when a third of them are new."""
    store = Versions({"1": BASE, "3": trained("1", None)})
    due = [choose_start(store, "3", 1_000, 1.5, ledger(new), "1000-0").is_fresh for new in (0, 333, 334, 500)]
    assert due == [False, False, True, True]


def test_a_start_that_did_not_go_live_before_the_last_one_that_did_holds_up_nothing() -> None:
    assert choose_start(STORE, "3", 1_500, 1.5, ledger(), "900-0").is_fresh
    assert choose_start(Versions({}), None, 10, 1.5, ledger(), "10-0").is_fresh  # a first version is tried each time


def test_the_first_round_starts_from_the_base() -> None:
    assert choose_start(STORE, "1", 10, 1.5, ledger()).is_fresh
    assert choose_start(STORE, "1", 10, 1.5, ledger(), "9-0").is_fresh  # and so does the next one, until one goes live
    assert choose_start(Versions({}), None, 10, 1.5, ledger()).version is None


def test_starts_from_the_base_can_be_turned_off() -> None:
    assert choose_start(STORE, "3", 10**9, 0, ledger()).version == "3"


@pytest.mark.parametrize("store", [{"3": trained("2", None)}, {"3": trained(None, None)}])
def test_without_an_untrained_version_a_round_goes_on_from_the_live_one(store: dict[str, Manifest]) -> None:
    chosen = choose_start(Versions(store), "3", 10**6, 1.5, ledger())
    assert (chosen.version, chosen.is_fresh) == ("3", False)


def test_passes_over_a_signal_are_bounded_however_many_rounds_there_are() -> None:
    growth, learned, passes = 1.5, 0, 0
    for signals in range(100, 1_000_001, 100):
        if signals >= growth * learned:
            learned, passes = signals, passes + signals
    assert passes / 1_000_000 <= growth / (growth - 1)


def test_what_a_policy_learned_from_its_own_answers_is_known_until_a_start_from_the_base() -> None:
    def made(parent: str, method: str, **notes: str) -> Manifest:
        return Manifest("policy", parent=parent, notes={"method": method, **notes})

    store = Versions(
        {
            "1": BASE,
            "2": made("1", "dpo-sigmoid", start="60 signals"),
            "3": made("2", "grpo"),
            "4": made("3", "dpo-sigmoid"),
            "5": made("4", "kto", start="90 signals"),
        }
    )
    assert [learned_from_own_answers(store, "policy", version) for version in "12345"] == [None, None, "3", "3", None]


def test_a_start_from_the_base_learns_the_newest_records_and_a_sample_of_the_others() -> None:
    drawn = fresh_records(range(1_000), newest=100, older=200, seed=1)
    assert list(drawn) == sorted(set(drawn))
    assert len(drawn) == 300
    assert list(drawn[-100:]) == list(range(900, 1_000))
    assert 0.4 < sum(record < 450 for record in drawn[:200]) / 200 < 0.6
    assert drawn == fresh_records(range(1_000), newest=100, older=200, seed=1)
    assert drawn != fresh_records(range(1_000), newest=100, older=200, seed=2)


def test_a_start_from_the_base_learns_all_records_if_there_are_few() -> None:
    assert fresh_records((1, 2, 3), newest=5, older=5, seed=0) == (1, 2, 3)
    assert fresh_records((1, 2, 3), newest=1, older=5, seed=0) == (1, 2, 3)
    assert fresh_records((1, 2, 3), newest=1, older=0, seed=0) == (3,)
