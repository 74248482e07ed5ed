"""Which pairs a judge is asked about, and what is read from files and signals."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from rewardloop.formats.text import Turn
from rewardloop_client import Feedback
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.judging.judge import Duel, Opinion
from rewardloop_trainer.judging.pairs.candidates import Candidate, PersonSaid, UnusablePairs, of_people, read_pairs
from rewardloop_trainer.judging.pairs.journal import TABLES, Journal
from rewardloop_trainer.judging.pairs.picking import PickRules, Scored, pick, uncertainty
from rewardloop_trainer.judging.replies import WorkFile

RULES = PickRules(shared_share=0.1, least_shared=10, uncertain_share=0.8)


def candidates(count: int, kind: str, people: bool = False) -> dict[str, Candidate]:
    made = [
        Candidate(Duel((Turn("user", f"{kind} {i}"),), f"a{i}", f"b{i}"), (PersonSaid("p", 1.0),) if people else ())
        for i in range(count)
    ]
    return {each.key: each for each in made}


def test_a_share_of_what_people_judged_and_the_uncertain_ones_of_the_rest() -> None:
    shared, others = candidates(500, "shared", people=True), candidates(500, "other")
    certain = {each.key: i for i, each in enumerate(others.values())}

    def score(asked: Sequence[Candidate]) -> Sequence[Scored]:
        return [((0.0, float(certain[each.key] + 1)), (1.0, 1.0)) for each in asked]

    picked = pick(shared, others, set(), 0, 200, RULES, score)
    kinds = [kind for _, kind in picked]
    assert (kinds.count("shared"), kinds.count("uncertain"), kinds.count("unasked")) == (20, 144, 36)
    most_uncertain = {key for key, place in certain.items() if place < 144}
    assert {each.key for each, kind in picked if kind == "uncertain"} == most_uncertain
    assert len({each.key for each, _ in picked}) == 200


def test_the_same_pairs_are_drawn_again_and_known_ones_never() -> None:
    shared, others = candidates(100, "shared", people=True), candidates(100, "other")
    first = [each.key for each, _ in pick(shared, others, set(), 0, 40, RULES)]
    assert [each.key for each, _ in pick(shared, others, set(), 0, 40, RULES)] == first
    later = [each.key for each, _ in pick(shared, others, set(first), 10, 40, RULES)]
    assert not set(first) & set(later)


def test_a_muted_judge_is_asked_about_shared_pairs_alone_and_not_about_all_of_them() -> None:
    shared = candidates(1_000, "shared", people=True)
    picked = pick(shared, {}, set(), 0, 500, RULES)
    assert {kind for _, kind in picked} == {"shared"}
    assert len(picked) == 100
    assert len(pick(shared, {}, set(), 0, 500, PickRules(1.0, 10, 0.8))) == 500


def test_pairs_that_people_have_judged_meanwhile_are_no_longer_unasked() -> None:
    both = candidates(5, "x")
    judged = candidates(5, "x", people=True)
    assert {kind for _, kind in pick(judged, both, set(), 0, 50, RULES)} == {"shared"}


def test_uncertain_is_a_small_margin_beside_its_spread() -> None:
    assert uncertainty(((1.0, 1.1), (0.3, 0.4))) == pytest.approx(5.0)
    assert uncertainty(((1.0, 2.0), (0.3, 0.4))) == pytest.approx(0.5)
    assert uncertainty(((1.0, 1.0), (0.0, 0.0))) == float("inf")
    assert uncertainty(((1.0, 3.0), (0.0, 0.0))) == pytest.approx(0.5)


def test_signals_of_people_make_pairs_with_all_that_was_said() -> None:
    asked = {"prompt": "q", "responses": ["one", "two"]}
    events = [
        Feedback.choice(chosen=0, rejected=1, annotator_id="ann", **asked),
        Feedback.choice(chosen=0, rejected=1, annotator_id="bob", prompt="q", responses=["two", "one"]),
        Feedback.tie(annotator_id="cy", **asked),
        Feedback.choice(chosen=1, rejected=0, source="llm_judge", **asked),
        Feedback.thumb(up=True, **asked),
        Feedback.edit(edited_text="three", **asked),
    ]
    (found,) = of_people(events).values()
    assert (found.duel.first, found.duel.second) == ("one", "two")
    assert found.people == (PersonSaid("ann", 1.0), PersonSaid("bob", 0.0), PersonSaid("cy", 0.5))


def test_rows_with_and_without_judgements_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    rows = [
        {"prompt": "q", "responses": ["a", "b", "c"]},
        {"prompt": "r", "chosen": "good", "rejected": "bad", "annotator": "ann"},
        {"prompt": [{"role": "user", "content": "r"}], "chosen": "bad", "rejected": "good"},
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    found = read_pairs(SourceFile.of(path))
    assert [(each.duel.first, each.duel.second, len(each.people)) for each in found] == [
        ("a", "b", 0),
        ("a", "c", 0),
        ("good", "bad", 2),
    ]
    assert [each.wins for each in found[2].people] == [1.0, 0.0]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "q", "responses": ["a"]}\n{"responses": ["a", "b"]}\n7\n')
    with pytest.raises(UnusablePairs) as error:
        read_pairs(SourceFile.of(bad))
    assert [line.partition(": ")[2] for line in str(error.value).splitlines()] == [
        "responses: needs two or more",
        "prompt: is absent",
        "is a number, not an object",
    ]


def test_the_journal_keeps_pairs_and_opinions_and_turns_late_judgements_its_own_way(tmp_path: Path) -> None:
    work = WorkFile(tmp_path, TABLES)
    journal = Journal(work, "j")
    some = candidates(3, "x")
    assert journal.add((each, "unasked") for each in some.values()) == 3
    assert journal.add((each, "unasked") for each in some.values()) == 0
    key = next(iter(some))
    opinion = Opinion("second", 0.25, 0.5, True, "m-1")
    journal.judged(key, opinion)
    journal.judged(key, Opinion("first", 1.0))  # a late reply changes nothing
    (kept,) = journal.pairs("judged")
    assert (kept.key, kept.opinion, kept.candidate) == (key, opinion, some[key])
    duel = some[key].duel
    turned = Candidate(Duel(duel.prompt, duel.second, duel.first), (PersonSaid("ann", 1.0),))
    journal.update_people({key: turned})
    assert journal.pairs("judged")[0].candidate.people == (PersonSaid("ann", 0.0),)
    journal.sent([key])
    journal.failed(next(k for k in some if k != key), "no opinion")
    assert journal.counts() == {("sent", "unasked"): 1, ("failed", "unasked"): 1, ("open", "unasked"): 1}
    assert list(journal.reasons()) == [("no opinion", 1)]
    assert Journal(work, "another").pairs("open", "judged", "sent", "failed") == []
    work.close()
