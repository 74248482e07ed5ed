"""An audit finds the leanings that were planted, at their size, and none where none was."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_local import corpus
from rewardloop_trainer.annotators.crowd_file import CrowdFile
from rewardloop_trainer.audit.audit import Audit, make_audit
from rewardloop_trainer.audit.coverage import UnusableTraffic, compare_coverage, traffic_of
from rewardloop_trainer.audit.judged import Unseen, judged_of, language_of
from rewardloop_trainer.audit.leanings import lean_to_first, lean_to_longer
from rewardloop_trainer.audit.model_figures import measure_model
from rewardloop_trainer.audit.probes import PROBES, measure_probe, probe_pairs
from rewardloop_trainer.audit.report import findings, report_of
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.reports.page import render

ALPACAEVAL = Path(__file__).resolve().parents[3].parent / "shared/data/alpacaeval_test.jsonl.gz"
NEW = Unseen(None, 0.1)


# Draws a prompt with two responses, and says with which probability people prefer the first by taste.
Draw = Callable[[np.random.Generator], tuple[str, str, str, float]]


def lengths_alone(chance: np.random.Generator) -> tuple[str, str, str, float]:
    """Texts that differ in length alone, of which people like the longer a little better."""
    one, other = ("word " * int(n) for n in chance.choice(np.arange(5, 60), 2, replace=False))
    likes = 1 / (1 + np.exp(-0.8 * np.log(len(one) / len(other))))
    return f"What about {int(chance.integers(400))}?", one, other, float(likes)


def of_the_demo(chance: np.random.Generator) -> tuple[str, str, str, float]:
    """Two answers of the demo's corpus, of which people mostly prefer one that is right."""
    draw = random.Random(int(chance.integers(2**40)))
    question = draw.choice(corpus.questions(0))
    styles = [corpus.random_style(question, draw) for _ in range(2)]
    one, other = (corpus.answer(question, style, draw) for style in styles)
    return question.text, one, other, 0.5 + 0.3 * (styles[0].right - styles[1].right)


def of_alpacaeval() -> Draw:
    """AlpacaEval's test pairs, of which people mostly prefer the one that its judge chose."""
    with gzip.open(ALPACAEVAL, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]

    def draw(chance: np.random.Generator) -> tuple[str, str, str, float]:
        row = rows[int(chance.integers(len(rows)))]
        if chance.random() < 0.5:
            return row["prompt"], row["chosen"], row["rejected"], 0.8
        return row["prompt"], row["rejected"], row["chosen"], 0.2

    return draw


def crowd(
    seed: int,
    draw: Draw = lengths_alone,
    *,
    first: float = 0.0,
    longer: float = 0.0,
    people: int = 40,
    each: int = 25,
) -> list[feedback_pb2.FeedbackEvent]:
    """Choices by taste of two groups of people.

    Those of group "b" take in these shares of their choices whatever they see first, or whatever is longer.
    """
    chance = np.random.default_rng(seed)
    found = []
    for i in range(people * each):
        person, is_b = i % people, i % 2 == 1
        prompt, one, other, likes_one = draw(chance)
        order = [0, 1] if chance.random() < 0.5 else [1, 0]
        chosen = int(chance.random() >= likes_one)
        drawn = chance.random()
        if is_b and drawn < first:
            chosen = order[0]
        elif is_b and drawn < first + longer and len(one) != len(other):
            chosen = int(len(other) > len(one))
        event = feedback_pb2.FeedbackEvent(
            event_id=f"e{i}",
            prompt=common_pb2.Prompt(text=prompt),
            responses=[one, other],
            choice=feedback_pb2.Choice(chosen=chosen, rejected=1 - chosen),
            annotator_id=f"p{person}",
            display_order=order,
            tags={"group": "b" if is_b else "a"},
        )
        event.arrival_time.FromMilliseconds(1_700_000_000_000 + 90_000 * i)
        found.append(event)
    return found


def audit_of(events: list[feedback_pb2.FeedbackEvent]) -> Audit:
    judged = judged_of(events, NEW, "group")
    with CrowdFile(None) as file:
        file.add(events)
        return make_audit(judged, file)


WORLDS: Mapping[str, Callable[[], Draw]] = {
    "lengths": lambda: lengths_alone,
    "demo": lambda: of_the_demo,
    "alpacaeval": of_alpacaeval,
}


def world_of(name: str) -> Draw:
    if name == "alpacaeval" and not ALPACAEVAL.exists():
        pytest.skip(f"{ALPACAEVAL}: the pairs are not on this machine")
    return WORLDS[name]()


# Runs in which a statement is tested, and the most that go wrong: more do so once in a thousand times, if one in
# twenty does.
RUNS, MOST_WRONG = 40, 7


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("planted", [{"first": 0.3}, {"longer": 0.3}, {}], ids=["first", "longer", "nothing"])
def test_planted_leanings_are_found_at_their_size(world: str, planted: dict[str, float]) -> None:
    """The interval of the leaning covers what was planted, and what was not, as often as it says."""
    draw = world_of(world)
    missed = dict.fromkeys(("first", "longer"), 0)
    for seed in range(RUNS):
        judged = judged_of(crowd(seed, draw, **planted), NEW, "group")
        of_b, others = ([each for each in judged if ("group b" in each.slices) == is_b] for is_b in (True, False))
        for name, leaning in {"first": lean_to_first(of_b), "longer": lean_to_longer(of_b, others)}.items():
            missed[name] += not leaning.leaning.lower <= planted.get(name, 0.0) <= leaning.leaning.upper
    print(f"{world}, planted {planted}: outside of the interval {missed} times in {RUNS}")
    assert missed["first"] <= MOST_WRONG
    # Who takes the first one in a share of the choices takes the longer one less often than the others do.
    assert missed["longer"] <= MOST_WRONG or "first" in planted


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
def test_an_audit_of_people_without_a_leaning_finds_one_as_seldom_as_it_says(world: str) -> None:
    """One audit in twenty may name a leaning, whatever its slices; `findings` as the command prints them."""
    draw = world_of(world)
    wrong = {seed: found for seed in range(RUNS) if (found := findings(audit_of(crowd(seed, draw))))}
    print(f"{world}: findings in {len(wrong)} of {RUNS} audits: {wrong}")
    assert len(wrong) <= MOST_WRONG


@pytest.mark.long
@pytest.mark.parametrize("planted", [{"first": 0.4}, {"longer": 0.4}], ids=["first", "longer"])
def test_an_audit_finds_a_planted_leaning_beside_all_of_its_slices(planted: dict[str, float]) -> None:
    what = "the response they see first" if "first" in planted else "the longer response"
    missed = 0
    for seed in range(20):
        found = findings(audit_of(crowd(seed, **planted)))
        missed += not any(each.startswith("group b: in ") and f"{what} more often" in each for each in found)
    print(f"planted {planted}: not named in {missed} of 20 audits")
    assert missed <= 1


def test_an_audit_names_who_leans_and_nobody_else() -> None:
    found = findings(audit_of(crowd(0, first=0.4)))
    assert any(each.startswith("group b: in ") and "the response they see first more often" in each for each in found)
    assert not any(each.startswith("group a") for each in found)
    assert not findings(audit_of(crowd(1)))


def graded(kind: str, values: Mapping[tuple[str, int], float]) -> list[feedback_pb2.FeedbackEvent]:
    """Thumbs or ratings from 1 to 5 by the person and the number of the response."""
    found = []
    for i, ((person, number), value) in enumerate(values.items()):
        event = feedback_pb2.FeedbackEvent(
            event_id=f"{kind}{i}", responses=[f"answer {number}"], annotator_id=person, prompt={"text": f"q{number}"}
        )
        if kind == "thumb":
            event.thumb.CopyFrom(feedback_pb2.Thumb(response=0, up=value > 0))
        else:
            event.rating.CopyFrom(feedback_pb2.Rating(response=0, value=value, minimum=1, maximum=5))
        event.arrival_time.FromMilliseconds(1_700_000_000_000 + 90_000 * i)
        found.append(event)
    return found


def test_agreement_is_known_for_thumbs_and_ratings_too() -> None:
    chance = np.random.default_rng(0)
    everybody = [(person, number) for number in range(30) for person in "abc"]
    thumbs = {each: float(chance.random() < 0.5) for each in everybody}
    ratings = {each: float(1 + each[1] % 5) for each in everybody}
    ratings["c", 0] = 2.0
    again = graded("rating", {("a", 1): 2.0, ("a", 2): 5.0})
    for event in again:
        event.event_id += " again"
    audit = audit_of([*crowd(1), *graded("thumb", thumbs), *again, *graded("rating", ratings)])
    kinds = {each.name: each for each in audit.kinds}
    assert set(kinds) == {"comparison", "thumb", "rating"}
    assert kinds["rating"].agreement.alpha == pytest.approx(1, abs=0.02)
    assert kinds["rating"].agreement.alpha < 1
    assert kinds["thumb"].agreement.upper < 0.4
    same = kinds["rating"].consistency
    assert (same.same, same.repeats) == (0.5, 2)
    slices = {each.name: each.agreement.alpha for each in audit.slices}
    assert slices["kind rating"] == pytest.approx(kinds["rating"].agreement.alpha)
    figures = report_of(audit, {}).figures
    assert {"alpha_comparison", "alpha_thumb", "alpha_rating", "self_consistency_rating"} & set(figures) == {
        *("alpha_thumb", "alpha_rating", "self_consistency_rating"),
    }
    assert "Agreement by kind of signal" in render(report_of(audit, {}))
    assert not audit_of(crowd(1)).kinds[1:]


@pytest.mark.parametrize(("items", "is_named"), [(6, False), (60, True)])
def test_that_people_hardly_agree_is_named_if_enough_was_judged_twice(items: int, is_named: bool) -> None:
    values = {(person, number): float((number + (person == "b")) % 2) for number in range(items) for person in "ab"}
    more = {(person, number): 1.0 for number in range(items, 60) for person in "a"}
    found = findings(audit_of(graded("thumb", {**values, **more})))
    assert any("people hardly agree" in each for each in found) is is_named


def answers(count: int) -> list[tuple[Prompt, str]]:
    events = crowd(1, people=20, each=count // 20)
    return [
        (pair.prompt, "It is so. " + pair.chosen) for each in judged_of(events, NEW, "group") for pair in each.pairs
    ]


def test_a_models_fondness_of_a_form_is_found() -> None:
    pairs = probe_pairs(answers(200))
    assert pairs.keys() == PROBES.keys()
    chance = np.random.default_rng(0)
    for name, each in pairs.items():
        noise = chance.normal(0, 0.3, len(each))
        fond = measure_probe(name, each, 0.8 + noise, 1.0)
        assert fond.is_beyond(0.001)
        assert fond.shift.value == pytest.approx(0.8 + noise.mean())
        assert fond.shift.upper - fond.shift.lower == pytest.approx(2 * 1.96 * 0.3 / 200**0.5, rel=0.25)
        assert not measure_probe(name, each, noise, 1.0).is_beyond(0.05)


def test_probes_change_form_alone() -> None:
    said = "Use the left button. Then wait a minute."
    changed = {name: change(said) for name, change in PROBES.items()}
    assert changed["list"] == "- Use the left button.\n- Then wait a minute."
    assert changed["markdown"] == "## Answer\n\n**Use the** left button. Then wait a minute."
    assert all(text is not None and "left button" in text for text in changed.values())
    assert PROBES["list"]("One sentence.") is None
    assert PROBES["markdown"]("Already **bold**.") is None


def test_a_models_accuracy_and_fondness_of_length_by_slice() -> None:
    events = crowd(2, people=20, each=60)
    pairs = [pair for each in judged_of(events, NEW, "group") for pair in each.pairs]
    length = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs]) / 100
    found = measure_model(pairs, length)
    assert found.accuracy.value == pytest.approx(found.length_baseline)
    assert found.accuracy_shorter_won == 0
    assert found.longer_beyond_people.lower > 0.2  # it always prefers the longer one, and people do not
    assert found.is_fonder_than_people(0.05, 0.001)
    assert not found.is_below_baseline(0.05)
    fair = measure_model(pairs, np.where(np.random.default_rng(0).random(len(pairs)) < 0.5, 1.0, -1.0))
    assert fair.accuracy.lower < 0.5 < fair.accuracy.upper
    turned = measure_model(pairs, -length)
    assert turned.is_below_baseline(0.001)
    assert not turned.is_fonder_than_people(0.05, 0.05)


def test_what_a_model_learned_from_does_not_judge_it() -> None:
    events = crowd(3, people=10, each=20)
    until = 1_700_000_000_000 + 90_000 * 149
    judged = judged_of(events, Unseen(until, 0.1), "group")
    assert all(each.is_unseen for each in judged[150:])
    assert 0 < sum(each.is_unseen for each in judged[:150]) < 50  # questions that are held out
    assert all(each.is_unseen for each in judged_of(events, NEW, "group"))


def test_slices_name_source_kind_language_group_and_guidelines() -> None:
    (event, *_) = crowd(0, people=10, each=1)
    event.tags["domain"] = "law"
    event.guideline_version = "v3"
    event.caller = "web"
    (judged,) = judged_of([event], NEW, "group")
    assert set(judged.slices) == {
        *("all", "source human", "kind choice", "language latin script", "group a", "tag domain=law"),
        *("guidelines v3", "caller web"),
    }


def test_a_language_is_its_tag_or_else_its_script() -> None:
    from rewardloop.formats.text import Turn

    assert language_of((Turn("user", "Что это?"),), ()) == "cyrillic script"
    assert language_of((Turn("user", "这是什么"),), ()) == "cjk script"
    assert language_of((Turn("user", "Was ist das?"),), [("lang", "de")]) == "de"
    assert language_of((Turn("user", "42?"),), ()) == "unknown"


def test_who_is_rare_among_the_signals_is_named() -> None:
    events = crowd(4, people=20, each=20)
    judged = judged_of(events, NEW, "group")
    rows = [{"prompt": "What is it?", "tags": {"group": "a"}, "count": 50}, {"prompt": "Что?", "count": 50}]
    found = compare_coverage(judged, traffic_of(enumerate(rows, 1)))  # type: ignore[arg-type]
    little = {each.name for each in found if each.is_little}
    assert little == {"language cyrillic script"}
    with pytest.raises(UnusableTraffic, match="row 1: not an object"):
        traffic_of([(1, {"prompts": "x"})])
    with pytest.raises(UnusableTraffic, match="no number of requests"):
        traffic_of([(1, {"prompt": "x", "count": 0})])


def test_a_report_shows_hostile_names_as_text() -> None:
    events = crowd(5, people=20, each=20)
    for event in events:
        event.tags["group"] = "<script>alert(1)</script>"
    page = render(report_of(audit_of(events), {"signals": "<b>x</b>"}))
    assert "<script>alert" not in page
    assert "<b>x</b>" not in page
