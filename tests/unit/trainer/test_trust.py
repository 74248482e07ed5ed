"""What a person's signal weighs, and what of it one hand and one source may have."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.crowds import gesture

from rewardloop.formats.text import Turn
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_trainer.annotators.crowd import know_crowd
from rewardloop_trainer.annotators.crowd_file import CrowdFile
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.data.preferences import Labelled, Pair, Record, from_event, from_events
from rewardloop_trainer.data.weights.influence import cap_influence
from rewardloop_trainer.data.weights.trust import Trust, trust_weight, weigh_people
from rewardloop_trainer.evaluation.evidence import Readings, evidence_of
from rewardloop_trainer.evaluation.reward_gate import agreement
from rewardloop_trainer.policy.examples import Examples

PROMPT = (Turn("user", "q"),)


def pair(who: str, number: int = 0, **changed: object) -> Pair:
    return replace(Pair(PROMPT, f"a{number}", f"b{number}", 1.0, f"{who}/{number}", annotator=who), **changed)  # type: ignore[arg-type]


def test_a_person_weighs_by_what_is_left_of_the_preference() -> None:
    assert trust_weight(0.75) == 1
    assert trust_weight(1.0) == 2
    assert trust_weight(0.5) == 0
    assert trust_weight(0.1) == 0  # a liar is not turned round
    trust = Trust({"good": 0.95}, {"good": {"field=code": 0.55}}, crowd=0.6)
    assert trust.weight("good") == pytest.approx(1.8)
    assert trust.weight("good", ["field=code", "day=monday"]) == pytest.approx(0.2)
    assert trust.weight("new") == pytest.approx(0.4)
    assert trust.weight("") == 1  # nobody is named


def test_records_keep_their_order_and_judges_their_weights() -> None:
    trust = Trust({"good": 0.95, "bad": 0.4}, signals={"good/1": 0.25}, hands={"good": "hand"})
    records: list[Record] = [pair("good"), pair("good", 1), pair("bad"), pair("judge", source="llm_judge")]
    found = weigh_people([*records, Labelled(PROMPT, "x", 1.0, annotator="good")], trust)
    assert [round(each.weight, 3) for each in found] == [1.8, 0.45, 0, 1, 1.8]
    assert [each.annotator for each in found] == ["hand", "hand", "bad", "judge", "hand"]


def test_trust_is_read_as_it_was_written() -> None:
    trust = Trust({"a": 0.9}, {"a": {"k=v": 0.5}}, 0.7, {"a": "b"}, {"e1": 0.5}, ("c",))
    assert Trust.from_json(trust.to_json()) == trust
    with pytest.raises(ValueError, match="no file of trust"):
        Trust.from_json("{}")


def test_a_signal_weighs_the_same_in_every_algorithm() -> None:
    trust = Trust({"good": 0.95, "bad": 0.55})
    records = weigh_people([pair("good"), pair("bad", 1)], trust)
    examples = Examples.of(records)
    assert [each.weight for each in examples.all_as_pairs()] == [each.weight for each in records]
    thumbs = examples.all_as_thumbs()
    assert [thumbs[0].weight + thumbs[1].weight, thumbs[2].weight + thumbs[3].weight] == [r.weight for r in records]


def test_ids_of_one_hand_have_the_influence_of_one_person() -> None:
    honest = [pair(f"p{i}", n) for i in range(40) for n in range(10)]
    sybils = [pair(f"id{i}", n) for i in range(20) for n in range(10)]
    trust = Trust(hands={f"id{i}": "id0" for i in range(20)})
    found = cap_influence(weigh_people([*honest, *sybils], trust), 0.1)
    total = sum(each.weight for each in found)
    assert sum(each.weight for each in found if each.annotator == "id0") / total == pytest.approx(0.1)


def test_a_source_other_than_people_has_at_most_its_share_if_people_say_anything() -> None:
    people = [pair(f"p{i}") for i in range(10)]
    judge = [pair("judge", n, source="llm_judge") for n in range(990)]
    found = cap_influence([*people, *judge], 1.0, 0.9)
    assert sum(each.weight for each in found if each.source == "llm_judge") == pytest.approx(90)
    assert [each.weight for each in found[:10]] == [1.0] * 10
    assert cap_influence(judge, 1.0, 0.9) == judge


def choice(number: int, person: str, prompt: int, chosen: int, caller: str = "") -> feedback_pb2.FeedbackEvent:
    event = feedback_pb2.FeedbackEvent(
        event_id=f"e{number}",
        prompt=common_pb2.Prompt(text=f"question {prompt}"),
        responses=["good answer", "poor answer"],
        choice=feedback_pb2.Choice(chosen=chosen, rejected=1 - chosen),
        annotator_id=person,
        caller=caller,
    )
    event.arrival_time.FromMilliseconds(1_700_000_000_000 + number)
    return event


def test_the_same_id_of_two_callers_is_two_people() -> None:
    (one,) = from_event(choice(1, "user-1", 0, 0, "web"))
    (other,) = from_event(choice(2, "user-1", 0, 0, "app"))
    assert one.annotator != other.annotator
    assert from_event(choice(3, "", 0, 0, "web"))[0].annotator == ""


def test_a_round_reads_what_the_ledger_has_since_the_last_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    events = [choice(i, f"p{i % 5}", i // 5, int(i % 5 == 4)) for i in range(100)]
    ledger.append([Recorded(f"{i}-1", event) for i, event in enumerate(events[:60], 1)])
    with CrowdFile(None) as file:
        assert file.take_in(ledger, "40-1") == 40
        assert file.take_in(ledger, "40-1") == 0
        ledger.append([Recorded(f"{i}-1", event) for i, event in enumerate(events[60:], 61)])
        assert file.take_in(ledger) == 60
        piecewise = file.votes().votes
        gestures = file.gestures()
    with CrowdFile(None) as file:
        file.add(events)
        at_once = file.votes().votes
        assert file.gestures() == gestures
        known = know_crowd(file.votes(), gestures)
        assert file.forget(lambda key, person, arrived: person == "p4") == 20
        assert "p4" not in file.votes().votes.people
    assert piecewise.people == at_once.people
    assert (piecewise.choice == at_once.choice).all()
    assert known.trust.accuracy["p4"] < 0.3 < 0.9 < known.trust.accuracy["p0"]


def test_the_file_keeps_the_newest_signals_and_no_text(tmp_path: Path) -> None:
    path = tmp_path / "annotators.sqlite"
    with CrowdFile(path, most=30) as file:
        file.add([choice(i, f"p{i}", i, 0) for i in range(50)])
        assert [each.person for each in file.gestures()] == [f"p{i}" for i in range(20, 50)]
        assert len(file.votes().votes) == 30
    assert b"answer" not in path.read_bytes()


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "annotators.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 30)
    with CrowdFile(path) as file:
        assert file.through == ""
    assert path.with_suffix(".damaged").exists()


def test_who_says_the_same_again_says_it_once() -> None:
    given = [gesture("p", i, question=1, content=1, key=f"p/{i}") for i in range(4)]
    given += [gesture("p", 9, question=2, content=2, key="p/9"), gesture("q", 1, question=1, content=1)]
    with CrowdFile(None) as file:
        trust = know_crowd(file.votes(), given).trust
    assert trust.signals == {f"p/{i}": 0.25 for i in range(4)}


def test_of_a_person_who_thinks_again_the_last_word_counts() -> None:
    given = [gesture("p", i, question=1, content=content) for i, content in enumerate([1, 2, 1, 3, 3])]
    with CrowdFile(None) as file:
        trust = know_crowd(file.votes(), given).trust
    assert trust.signals == {"p/0": 0.0, "p/1": 0.0, "p/2": 0.0, "p/3": 0.5, "p/4": 0.5}


def test_a_changed_mind_is_one_signal_in_the_estimates_the_loss_and_the_gate() -> None:
    """Three people answer twenty questions, and one of them first said the opposite about each of them."""

    def said(number: int, person: str, prompt: int, chosen: int) -> feedback_pb2.FeedbackEvent:
        event = choice(number, person, prompt, chosen)
        event.responses[:] = [f"this{prompt}", f"that{prompt}"]
        return event

    chosen = [(who, i, int(i % 2 == (who == "c" and i % 5 == 0))) for who in "bac" for i in range(20)]
    plain = [said(100 + number, *each) for number, each in enumerate(chosen)]
    changed = [said(number, "b", i, 1 - won) for number, (who, i, won) in enumerate(chosen) if who == "b"] + plain
    with CrowdFile(None) as once, CrowdFile(None) as twice:
        once.add(plain)
        twice.add(changed)
        usual, known = (know_crowd(file.votes(), file.gestures()) for file in (once, twice))
    assert known.reliability.people == usual.reliability.people
    assert known.agreement.alpha == usual.agreement.alpha < 1
    assert (known.consistency.repeats, known.consistency.same) == (20, 0.0)
    assert usual.consistency.repeats == 0

    learned = weigh_people(from_events(changed).records, known.trust)
    expected = weigh_people(from_events(plain).records, usual.trust)
    assert [each.weight for each in learned[:20]] == [0.0] * 20
    assert learned[20:] == expected
    gate, usual_gate = (evidence_of(each) for each in (learned, expected))
    shares = []
    for evidence in (gate, usual_gate):
        likes_this = np.array([1.0 if pair.chosen.startswith("this") else -1.0 for pair in evidence.pairs])
        shares.append(agreement(evidence, Readings(likes_this, np.zeros(0)))["held-out accuracy"])
    assert shares[0].mean == pytest.approx(shares[1].mean)
    assert shares[0].error == pytest.approx(shares[1].error)
    assert gate.prompts == pytest.approx(usual_gate.prompts)


def test_the_better_response_and_the_more_harmless_one_are_two_questions() -> None:
    """Everybody judges each pair by both aspects, and calls the better response the less harmless one."""
    events: list[feedback_pb2.FeedbackEvent] = []
    for aspect, chosen in (("", 0), ("harmless", 1)):
        for i in range(60):
            event = choice(len(events), f"p{i % 3}", i // 3, chosen)
            event.aspect = aspect
            events.append(event)
    with CrowdFile(None) as file:
        file.add(events)
        crowd = know_crowd(file.votes(), file.gestures())
    assert crowd.trust.signals == {}
    assert crowd.consistency.repeats == 0
    assert (crowd.agreement.items, crowd.agreement.votes) == (40, 120)


def test_a_file_of_an_older_release_is_read_from_the_ledger_again(tmp_path: Path) -> None:
    path, ledger = tmp_path / "annotators.sqlite", Ledger(tmp_path / "ledger")
    ledger.append([Recorded(f"{i}-1", choice(i, "p", i, 0)) for i in range(1, 4)])
    with CrowdFile(path) as file:
        file.take_in(ledger)
    with closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA user_version = 1")
    with CrowdFile(path) as file:
        assert file.through == ""
        assert file.take_in(ledger) == 3
    with CrowdFile(path) as file:
        assert len(file.gestures()) == 3
    assert not path.with_suffix(".damaged").exists()


def test_signals_that_name_nobody_are_all_heard() -> None:
    events = [choice(1, "", 0, 0), choice(2, "", 0, 1)]
    with CrowdFile(None) as file:
        file.add(events)
        trust = know_crowd(file.votes(), file.gestures()).trust
    assert [each.weight for each in weigh_people(from_events(events).records, trust)] == [1.0, 1.0]


def test_muted_annotator_weighs_nothing_whatever_the_source_is() -> None:
    trust = Trust({"good": 0.95}, muted=("good", "judge"))
    records = [
        Pair(PROMPT, "a", "b", annotator="good"),
        Pair(PROMPT, "a", "b", annotator="judge", source="llm_judge"),
        Pair(PROMPT, "a", "b", annotator="other"),
    ]
    assert [each.weight > 0 for each in weigh_people(records, trust)] == [False, False, True]
