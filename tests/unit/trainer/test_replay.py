"""The data set of a round: split by prompt, once each, old ones sampled."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable

from support.signals import choice

from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.data.replay import load_replay


def ledger_of(events: Iterable[feedback_pb2.FeedbackEvent]) -> Ledger:
    ledger = Ledger(f"memory://replay-{uuid.uuid4().hex}")
    ledger.append([Recorded(f"{1000 + i}-0", event) for i, event in enumerate(events)])
    return ledger


def test_no_prompt_is_on_both_sides_and_nothing_is_lost() -> None:
    replay = load_replay(ledger_of(choice(i, prompts=200) for i in range(1000)), "9999-0", heldout_share=0.2)
    train, heldout = {r.prompt for r in replay.train}, {r.prompt for r in replay.heldout}
    assert not train & heldout
    assert len(replay.train) + len(replay.heldout) == 1000
    assert 0.1 < len(heldout) / 200 < 0.3
    assert (replay.counts, replay.left_out, replay.identical) == ({"choice": 1000}, 0, 0)


def test_prompts_stay_on_their_side_as_the_ledger_grows() -> None:
    ledger = ledger_of(choice(i, prompts=100) for i in range(300))
    before = load_replay(ledger, "1150-0")
    after = load_replay(ledger, "1299-0")
    assert {r.prompt for r in before.heldout} <= {r.prompt for r in after.heldout}
    assert not {r.prompt for r in before.heldout} & {r.prompt for r in after.train}
    assert len(before.train) + len(before.heldout) == 151


def test_event_recorded_twice_counts_once() -> None:
    replay = load_replay(ledger_of([choice(1), choice(2), choice(1)]), "9999-0")
    assert Counter(r.event_id for r in (*replay.train, *replay.heldout)) == {"e1": 1, "e2": 1}


def test_newest_are_kept_and_older_ones_sampled_the_same_way_each_time() -> None:
    ledger = ledger_of(choice(i, prompts=100) for i in range(1000))
    everything = load_replay(ledger, "9999-0").train
    capped = load_replay(ledger, "9999-0", newest=200, replayed=50, seed=3)
    assert capped.train[-200:] == everything[-200:]
    older = capped.train[:-200]
    assert len(older) == 50
    assert {r.event_id for r in older} <= {r.event_id for r in everything[:-200]}
    assert capped == load_replay(ledger, "9999-0", newest=200, replayed=50, seed=3)
    assert older != load_replay(ledger, "9999-0", newest=200, replayed=50, seed=4).train[:-200]


def test_held_out_records_are_capped() -> None:
    replay = load_replay(ledger_of(choice(i, prompts=100) for i in range(1000)), "9999-0", max_heldout=20)
    assert len(replay.heldout) == 20


def test_choice_between_equal_texts_is_counted_and_left_out() -> None:
    same = choice(1)
    same.responses[0] = same.responses[1]
    replay = load_replay(ledger_of([same, choice(2)]), "9999-0")
    assert (len(replay.train) + len(replay.heldout), replay.identical) == (1, 1)
