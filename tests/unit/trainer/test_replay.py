"""The data set of a round: new signals and some old ones, each a bounded number of times, and held-out ones apart."""

from __future__ import annotations

import random
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from support.signals import choice

from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.data.overlap import measure_overlap
from rewardloop_trainer.data.pools.database import is_locked
from rewardloop_trainer.data.pools.pools import MOST_PASSES, PoolLimits, Pools, RoundRange
from rewardloop_trainer.data.preferences import Record
from rewardloop_trainer.data.replay import POOLS, Replay, load_judged, load_replay, load_trained
from rewardloop_trainer.rounds.pauses import is_disk_full

LIMITS = PoolLimits(heldout_share=0.2, judge_share=0.1, newest=400, replayed=100, max_heldout=60, max_judge=30)


def ledger_of(events: Iterable[feedback_pb2.FeedbackEvent]) -> Ledger:
    ledger = Ledger(f"memory://replay-{uuid.uuid4().hex}")
    add(ledger, 0, events)
    return ledger


def add(ledger: Ledger, first: int, events: Iterable[feedback_pb2.FeedbackEvent]) -> None:
    ledger.append([Recorded(f"{1000 + first + i}-0", event) for i, event in enumerate(events)])


def asked(after: int | None, until: int, model: str = "reward") -> RoundRange:
    """The round that learns the signals after and until these numbers."""
    return RoundRange(model, "" if after is None else f"{1000 + after}-0", f"{1000 + until}-0", seed=until)


def ids(records: Iterable[Record]) -> list[str]:
    return [record.event_id for record in records]


def rounds(ledger: Ledger, path: Path, count: int, each: int, limits: PoolLimits, first: int = 0) -> list[Replay]:
    """Rounds one after another, each of ``each`` new choices about questions of their own."""
    found = []
    for number in range(first, first + count):
        add(ledger, number * each, (choice(i, prompts=10**6) for i in range(number * each, (number + 1) * each)))
        this = asked(number * each - 1 if number else None, (number + 1) * each - 1)
        found.append(load_replay(ledger, path, this, limits))
    return found


def test_no_question_is_on_both_sides_and_nothing_is_lost(tmp_path: Path) -> None:
    ledger = ledger_of(choice(i, prompts=200) for i in range(1000))
    limits = replace(LIMITS, newest=2000, max_heldout=2000, judge_share=0.0, few=0)
    replay = load_replay(ledger, tmp_path / POOLS, asked(None, 999), limits)
    train, heldout = {r.prompt for r in replay.train}, {r.prompt for r in replay.heldout}
    assert not train & heldout
    assert len(replay.train) + len(replay.heldout) == 1000
    assert 0.1 < len(heldout) / 200 < 0.3
    assert (replay.counts, replay.left_out, replay.identical) == ({"choice": 1000}, 0, 0)
    assert (replay.is_by_pair, replay.overlap.near) == (False, 0.0)


def test_a_round_learns_its_new_signals_and_some_old_ones(tmp_path: Path) -> None:
    ledger, path = ledger_of([]), tmp_path / POOLS
    found = rounds(ledger, path, 6, 100, LIMITS)
    assert (len(found[0].new) > 50, found[0].replayed) == (True, ())
    for number, replay in enumerate(found):
        assert {int(i[1:]) // 100 for i in ids(replay.new)} == {number}
        assert all(int(i[1:]) // 100 < number for i in ids(replay.replayed))
    assert len(found[-1].replayed) == pytest.approx(2 * len(found[-1].new), abs=1)
    assert ids(found[-1].replayed) == sorted(ids(found[-1].replayed), key=lambda i: int(i[1:]))
    held = [set(ids(replay.heldout)) for replay in found]
    assert 50 < len(held[-1]) <= LIMITS.max_heldout  # those of the first questions, split by pair, are not shown
    assert not held[-1] & {i for replay in found for i in ids(replay.train)}
    assert {int(i[1:]) // 100 for i in held[-1]} >= {1, 2, 3, 4, 5}


@pytest.mark.parametrize("passes", [1.0, 2.5, 3.0])
def test_signals_get_their_passes_and_none_gets_over_twice_as_many(tmp_path: Path, passes: float) -> None:
    limits = replace(LIMITS, newest=1_000, replayed=300, passes=passes)
    each = 60
    found = rounds(ledger_of([]), tmp_path / POOLS, 50, each, limits)
    seen = Counter(i for replay in found for i in ids(replay.train))
    settled = [count for i, count in seen.items() if int(i[1:]) < 40 * each]
    assert sum(settled) / len(settled) == pytest.approx(passes, rel=0.15)
    assert max(seen.values()) <= MOST_PASSES * passes
    assert min(seen.values()) == 1
    total = sum(seen.values()) / len(seen)
    assert total <= passes
    assert total == pytest.approx(passes, rel=0.1)


def test_a_round_of_several_epochs_spends_more_passes(tmp_path: Path) -> None:
    limits = replace(LIMITS, passes=3.0, epochs=3.0)
    found = rounds(ledger_of([]), tmp_path / POOLS, 4, 50, limits)
    assert [len(replay.replayed) for replay in found] == [0, 0, 0, 0]


def test_a_killed_round_finds_the_same_data_whatever_came_since(tmp_path: Path) -> None:
    ledger, path = ledger_of(choice(i, prompts=10**6) for i in range(500)), tmp_path / POOLS
    load_replay(ledger, path, asked(None, 199), LIMITS)
    load_replay(ledger, path, asked(None, 299, "policy"), LIMITS)
    before = load_replay(ledger, path, asked(199, 399), LIMITS)
    add(ledger, 500, (choice(i, prompts=10**6) for i in range(500, 700)))
    load_replay(ledger, path, asked(299, 699, "policy"), LIMITS)
    assert load_replay(ledger, path, asked(199, 399), LIMITS) == before


def test_a_process_that_dies_in_a_step_leaves_the_step_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, path = ledger_of(choice(i, prompts=10**6) for i in range(400)), tmp_path / POOLS
    load_replay(ledger, path, asked(None, 199), LIMITS)
    other = tmp_path / "other.sqlite"
    other.write_bytes(path.read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(Pools, "_draw", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load_replay(ledger, path, asked(199, 399), LIMITS)
    assert load_replay(ledger, path, asked(199, 399), LIMITS) == load_replay(ledger, other, asked(199, 399), LIMITS)


def test_pools_that_are_lost_are_read_from_the_ledger_again(tmp_path: Path) -> None:
    ledger, path = ledger_of([]), tmp_path / POOLS
    kept = rounds(ledger, path, 10, 100, LIMITS)
    trained, judged = load_trained(path, "reward", LIMITS), load_judged(path, "reward", LIMITS)
    for broken in (None, b"no database at all" * 1_000):
        path.unlink()
        if broken is not None:
            path.write_bytes(broken)
        replay = load_replay(ledger, path, asked(899, 999), LIMITS)
        assert (replay.new, replay.heldout) == (kept[-1].new, kept[-1].heldout)
        assert load_trained(path, "reward", LIMITS) == trained
        assert load_judged(path, "reward", LIMITS) == judged
        assert replay.replayed == ()  # nobody knows what passes the old ones had


def test_pools_that_are_damaged_inside_are_put_aside_and_read_again(tmp_path: Path) -> None:
    ledger, path = ledger_of([]), tmp_path / POOLS
    kept = rounds(ledger, path, 4, 100, LIMITS)
    whole = path.read_bytes()
    path.write_bytes(whole[:8_192] + b"\xa5" * (len(whole) - 8_192))
    replay = load_replay(ledger, path, asked(299, 399), LIMITS)
    assert (replay.new, replay.heldout) == (kept[-1].new, kept[-1].heldout)
    assert (tmp_path / "pools.damaged").exists()


def test_signals_of_a_round_that_never_read_them_have_all_their_passes_left(tmp_path: Path) -> None:
    ledger, path = ledger_of(choice(i, prompts=10**6) for i in range(300)), tmp_path / POOLS
    limits = replace(LIMITS, passes=1.0)  # nothing is drawn
    first = load_replay(ledger, path, asked(None, 99), limits)
    load_replay(ledger, path, asked(199, 299), limits)  # the round of 100 to 199 failed before it read its signals
    with Pools(path, limits) as pools:
        passes = pools.passes("reward")
    assert passes.count(1.0) == len(first.new)
    assert passes.count(0.0) == len(passes) - len(first.new) > 50


def test_pools_that_another_process_writes_are_no_failure(tmp_path: Path) -> None:
    path = tmp_path / POOLS
    with Pools(path, LIMITS):
        pass
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Pools(path, LIMITS) as pools:
        pools._connection.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(sqlite3.OperationalError) as locked:
            pools.prepare(ledger_of([choice(1)]), asked(None, 0))
    assert is_locked(locked.value)
    other.close()


def test_what_is_kept_has_the_newest_whole_and_the_older_sampled(tmp_path: Path) -> None:
    path = tmp_path / POOLS
    found = rounds(ledger_of([]), path, 12, 100, LIMITS)
    kept = ids(load_trained(path, "reward", LIMITS))
    learned = [i for replay in found[:-1] for i in ids(replay.new)]
    assert kept[-LIMITS.newest :] == learned[-LIMITS.newest :]
    older = kept[: -LIMITS.newest]
    assert len(older) == LIMITS.replayed
    assert set(older) <= set(learned[: -LIMITS.newest])
    apart = [*ids(load_judged(path, "reward", LIMITS)), *ids(found[-1].heldout)]
    assert not set(apart) & set(learned)


def test_more_new_signals_than_a_round_takes_are_kept_for_later_rounds(tmp_path: Path) -> None:
    ledger, path = ledger_of([]), tmp_path / POOLS
    for first in range(0, 3_000, 200):
        add(ledger, first, (choice(i, prompts=10**6) for i in range(first, first + 200)))
    replay = load_replay(ledger, path, asked(None, 2_999), LIMITS)
    assert min(int(i[1:]) for i in ids(replay.new)) >= 2_600 - 200
    assert 200 < len(replay.new) <= 600
    assert len(replay.replayed) > 0  # the ones before have their passes left
    assert len(load_trained(path, "reward", LIMITS)) == LIMITS.newest + LIMITS.replayed


def test_signals_that_are_archived_late_are_not_lost(tmp_path: Path) -> None:
    path = tmp_path / POOLS
    ledger = Ledger(tmp_path / "ledger")
    late = [Recorded("1050-7", choice(10_000, prompts=10**6))]
    add(ledger, 0, (choice(i, prompts=10**6) for i in range(100)))
    load_replay(ledger, path, asked(None, 99), LIMITS)
    ledger.append(late)
    add(ledger, 100, (choice(i, prompts=10**6) for i in range(100, 200)))
    replay = load_replay(ledger, path, asked(99, 199), LIMITS)
    everywhere = [*load_trained(path, "reward", LIMITS), *load_judged(path, "reward", LIMITS), *replay.heldout]
    assert "e10000" in ids(everywhere)


def test_event_recorded_twice_counts_once(tmp_path: Path) -> None:
    ledger = ledger_of([choice(1), choice(2), choice(1)])
    limits = replace(LIMITS, heldout_share=0.01, judge_share=0.0)
    assert Counter(ids(load_replay(ledger, tmp_path / POOLS, asked(None, 2), limits).train)) == {"e1": 1, "e2": 1}
    add(ledger, 3, [choice(2), choice(3)])
    replay = load_replay(ledger, tmp_path / POOLS, asked(2, 4), limits)
    assert ids(replay.new) == ["e3"]


def test_choice_between_equal_texts_is_counted_and_left_out(tmp_path: Path) -> None:
    same = choice(1)
    same.responses[0] = same.responses[1]
    replay = load_replay(ledger_of([same, choice(2)]), tmp_path / POOLS, asked(None, 1), LIMITS)
    assert (len(replay.train) + len(replay.heldout), replay.identical) == (1, 1)


def test_a_product_with_one_prompt_has_held_out_pairs_and_the_figures_say_so(tmp_path: Path) -> None:
    ledger = ledger_of(choice(i, prompts=1) for i in range(500))
    replay = load_replay(ledger, tmp_path / POOLS, asked(None, 499), replace(LIMITS, max_heldout=500))
    assert 60 < len(replay.heldout) < 140
    assert 300 < len(replay.train) <= 400
    said = replay.figures
    assert (said["heldout_by_pair"], said["heldout_overlap_root"], said["heldout_overlap_near"]) == (1.0, 1.0, 1.0)


def test_pairs_of_the_first_questions_are_no_evidence_once_there_are_enough_others(tmp_path: Path) -> None:
    ledger, path = ledger_of(choice(i, prompts=5) for i in range(200)), tmp_path / POOLS
    few = load_replay(ledger, path, asked(None, 199), LIMITS)
    assert (few.is_by_pair, few.overlap.root) == (True, 1.0)
    add(ledger, 200, (choice(i, prompts=10**6) for i in range(200, 600)))
    many = load_replay(ledger, path, asked(199, 599), LIMITS)
    assert (many.is_by_pair, many.overlap.near) == (False, 0.0)
    assert len(many.heldout) > 20


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    with Pools(tmp_path / POOLS, LIMITS) as pools:
        pools._connection.execute("PRAGMA max_page_count = 40")
        with pytest.raises(sqlite3.OperationalError) as full:
            pools.prepare(ledger_of(choice(i, prompts=10**6) for i in range(2_000)), asked(None, 1_999))
    assert is_disk_full(full.value)


# The three leaks that a split by the whole prompt has: 88%, 100% and 90% of the held-out signals were in training.


def talk(number: int, *turns: tuple[str, str]) -> feedback_pb2.FeedbackEvent:
    event = choice(number)
    event.prompt.Clear()
    for role, content in turns:
        event.prompt.conversation.messages.add(role=role, content=content)
    return event


def second_turns(chance: random.Random) -> Iterable[feedback_pb2.FeedbackEvent]:
    for i in range(2_000):
        subject = " ".join(chance.sample(_WORDS, 9))
        first, second = (
            ("user", f"tell me of {subject}"),
            ("user", f"what of {chance.choice(_WORDS)} and {subject[::-1]}"),
        )
        yield talk(2 * i, first)
        yield talk(2 * i + 1, first, ("assistant", f"it is {i}"), second)


def dated_system_turns(chance: random.Random) -> Iterable[feedback_pb2.FeedbackEvent]:
    questions = [" ".join(chance.sample(_WORDS, 8)) for _ in range(500)]
    for i in range(4_000):
        system = f"You help. Today is 2026-{1 + i % 12:02}-{1 + i % 28:02}, {i % 24:02}:{i % 60:02}. User {i}."
        yield talk(i, ("system", system), ("user", chance.choice(questions)))


def full_stops(chance: random.Random) -> Iterable[feedback_pb2.FeedbackEvent]:
    questions = [" ".join(chance.sample(_WORDS, 8)) for _ in range(1_000)]
    for i in range(4_000):
        yield talk(i, ("user", questions[i % 1_000] + chance.choice(["", ".", "?", " .", "!", " \n", "。"])))


_WORDS = [f"term{i}" for i in range(2_000)]


@pytest.mark.parametrize("events", [second_turns, dated_system_turns, full_stops])
def test_no_held_out_question_leaks_into_training(events: object, tmp_path: Path) -> None:
    ledger = ledger_of(events(random.Random(5)))  # type: ignore[operator]
    limits = replace(LIMITS, newest=10_000, max_heldout=10_000)
    replay = load_replay(ledger, tmp_path / POOLS, asked(None, 3_999), limits)
    assert len(replay.heldout) > 400

    def words_of(record: Record) -> set[str]:
        return {" ".join(_letters(turn.content).split()) for turn in record.prompt if turn.role == "user"}

    trained = {text for record in replay.train for text in words_of(record)}
    leaked = [record for record in replay.heldout if words_of(record) & trained]
    assert len(leaked) / len(replay.heldout) < 0.01
    assert max(measure_overlap(replay.train, replay.heldout).figures().values()) < 0.01
    assert replay.left_out / 4_000 < 0.01


def _letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum() or c.isspace())


def test_a_compaction_between_rounds_changes_no_data(tmp_path: Path) -> None:
    found: list[list[Replay]] = []
    for is_compacted in (False, True):
        ledger = Ledger(tmp_path / f"ledger-{is_compacted}")
        path = tmp_path / f"{is_compacted}.sqlite"
        replays = []
        for number in range(8):
            for start in range(number * 100, (number + 1) * 100, 20):
                add(ledger, start, (choice(i, prompts=10**6) for i in range(start, start + 20)))
            this = asked(number * 100 - 1 if number else None, (number + 1) * 100 - 1)
            replays.append(load_replay(ledger, path, this, LIMITS))
            if is_compacted:
                assert ledger.compact(segments=3) is not None
                assert load_replay(ledger, path, this, LIMITS) == replays[-1]
        found.append(replays)
    assert found[0] == found[1]


def test_a_round_learns_from_the_signals_of_its_aspect_alone(tmp_path: Path) -> None:
    events = [choice(i, prompts=10**6) for i in range(300)]
    for i, event in enumerate(events):
        event.aspect = ("", "harmless", "reward")[i % 3]
    ledger = ledger_of(events)
    rewards = load_replay(ledger, tmp_path / POOLS, asked(None, 299), LIMITS)
    named = replace(asked(None, 299, "harmless"), aspect="harmless")
    harmless = load_replay(ledger, tmp_path / POOLS, named, LIMITS)
    of = {event.event_id: event.aspect for event in events}
    assert {of[i] for i in ids((*rewards.new, *rewards.heldout))} == {"", "reward"}
    assert {of[i] for i in ids((*harmless.new, *harmless.heldout))} == {"harmless"}
    assert (rewards.counts, harmless.counts) == ({"choice": 200}, {"choice": 100})
    assert len(ledger.arrivals()) == 200
    assert len(ledger.arrivals(aspect="harmless")) == 100
