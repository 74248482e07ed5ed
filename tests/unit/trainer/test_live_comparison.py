"""What the live test makes of signals, and how often it decides rightly."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping

import pytest

from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_trainer.evaluation.live_comparison import Decision, LiveTest
from rewardloop_trainer.policy.settings import LiveTestSettings

SETTINGS = LiveTestSettings.model_validate({})
NEW, OLD = "8", "7"
Event = feedback_pb2.FeedbackEvent
_NUMBERS = itertools.count()


def somebody() -> str:
    """A person who says nothing else."""
    return f"person {next(_NUMBERS)}"


def duel(versions: tuple[str, ...] = (NEW, OLD), **signal: object) -> Event:
    event = Event(
        responses=[f"answer {i}" for i in range(len(versions))],
        policy_version=common_pb2.ModelVersion(version=OLD),
        response_versions=versions,
        annotator_id=str(signal.pop("annotator_id", somebody())),
    )
    event.MergeFrom(Event(**signal))  # type: ignore[arg-type]
    return event


def single(version: str, **signal: object) -> Event:
    about = common_pb2.ModelVersion(version=version)
    who = str(signal.pop("annotator_id", somebody()))
    event = Event(responses=["answer"], policy_version=about, annotator_id=who)
    event.MergeFrom(Event(**signal))  # type: ignore[arg-type]
    return event


def choice(chosen: int, rejected: int) -> Mapping[str, object]:
    return {"choice": feedback_pb2.Choice(chosen=chosen, rejected=rejected)}


def thumb(up: bool) -> Mapping[str, object]:
    return {"thumb": feedback_pb2.Thumb(up=up)}


def figures_after(*events: Event, settings: LiveTestSettings = SETTINGS) -> tuple[float, float]:
    """How many people counted, and the share won."""
    test = LiveTest(NEW, OLD, settings)
    for event in events:
        test.add(event)
    return test.figures["live_people"], test.figures["live_win_rate"]


@pytest.mark.parametrize(
    ("event", "value"),
    [
        (duel(**choice(0, 1)), 1.0),
        (duel(**choice(1, 0)), 0.0),
        (duel((OLD, NEW), **choice(0, 1)), 0.0),
        (duel(tie=feedback_pb2.Tie(first=0, second=1)), 0.5),
        # New, old, old, new from best to worst: of the four pairs of both, the first new one wins its two.
        (duel((NEW, OLD, OLD, NEW), ranking=feedback_pb2.Ranking(order=[0, 1, 2, 3])), 0.5),
        (duel((NEW, OLD, NEW), ranking=feedback_pb2.Ranking(order=[2, 0, 1])), 1.0),
    ],
)
def test_comparison_of_both_versions_counts_once(event: Event, value: float) -> None:
    assert figures_after(event) == (1, value)


@pytest.mark.parametrize(
    "event",
    [
        duel((NEW, NEW), **choice(0, 1)),
        duel(("6", NEW), **choice(0, 1)),
        single(NEW, **choice(0, 0)),
        duel(source=feedback_pb2.SOURCE_LLM_JUDGE, **choice(0, 1)),
        duel(source=feedback_pb2.SOURCE_IMPLICIT, **choice(0, 1)),
        duel(edit=feedback_pb2.Edit(response=0, edited_text="other")),
        single("6", **thumb(True)),
        single(NEW, **thumb(True)),
    ],
)
def test_what_compares_nothing_does_not_count(event: Event) -> None:
    assert figures_after(event, event)[0] == 0


def test_equal_texts_compare_nothing() -> None:
    event = duel(**choice(0, 1))
    event.responses[1] = event.responses[0]
    assert figures_after(event)[0] == 0


def test_thumbs_of_one_version_meet_those_of_the_other_in_their_order() -> None:
    new = [single(NEW, **thumb(up)) for up in (True, True, False)]
    old = [single(OLD, **thumb(up)) for up in (False, True, True)]
    # up against down 1, up against up 1/2, down against up 0.
    assert figures_after(*new, *old) == (3, 0.5)
    assert figures_after(new[0], old[0], old[1]) == (1, 1.0)
    assert figures_after(new[0], old[0], old[1], new[1]) == (2, 0.75)


def test_what_people_said_before_the_candidate_was_shown_does_not_use_up_the_test() -> None:
    earlier = [single(OLD, **thumb(True)) for _ in range(SETTINGS.max_preferences)]
    test = LiveTest(NEW, OLD, SETTINGS)
    assert {test.add(event) for event in earlier} == {"running"}
    assert test.figures["live_preferences"] == 0
    for event in (single(NEW, **thumb(True)), single(OLD, **thumb(False)), duel(**choice(0, 1))):
        assert test.add(event) == "running"
    assert (test.figures["live_preferences"], test.figures["live_people"]) == (3, 2)


def test_ratings_meet_as_their_share_of_the_scale() -> None:
    new = single(NEW, rating=feedback_pb2.Rating(value=4, minimum=0, maximum=5))
    old = single(OLD, rating=feedback_pb2.Rating(value=3, minimum=1, maximum=5))
    assert figures_after(new, old) == (1, pytest.approx(0.5 + (0.8 - 0.5) / 2))


def test_one_person_is_one_value_however_much_they_say() -> None:
    loud = [duel(annotator_id="loud", **choice(int(i % 3 > 0), int(i % 3 == 0))) for i in range(9)]
    assert figures_after(*loud) == (1, pytest.approx(1 / 3))
    assert figures_after(*loud, duel(annotator_id="other", **choice(0, 1))) == (2, pytest.approx((1 / 3 + 1) / 2))
    first_three = LiveTestSettings.model_validate({"most_per_person": 3})
    wins_first = sorted(loud, key=lambda event: event.choice.chosen)
    assert figures_after(*wins_first, settings=first_three) == (1, 1.0)


def test_thumbs_of_one_person_on_both_versions_are_compared_with_each_other() -> None:
    said = [single(v, annotator_id="a", **thumb(up)) for v, up in ((NEW, True), (NEW, False), (OLD, False))]
    assert figures_after(*said) == (1, pytest.approx(0.75))
    assert figures_after(*said, duel(annotator_id="a", **choice(1, 0))) == (1, pytest.approx(0.375))


@pytest.mark.parametrize("name", ["one person", ""])
def test_one_person_decides_nothing_however_often_they_choose(name: str) -> None:
    """Signals that name nobody may all be one person's."""
    test = LiveTest(NEW, OLD, LiveTestSettings.model_validate({"most_per_person": 10_000}))
    for _ in range(900):
        assert test.add(duel(annotator_id=name, **choice(0, 1))) == "running"


def test_fewer_than_the_least_people_decide_nothing() -> None:
    test = LiveTest(NEW, OLD, SETTINGS)
    for _ in range(SETTINGS.least_people - 1):
        assert test.add(duel(**choice(0, 1))) == "running"
    assert test.add(duel(**choice(0, 1))) == "promote"


def test_what_comes_after_the_decision_changes_nothing() -> None:
    test = LiveTest(NEW, OLD, SETTINGS)
    while test.add(duel(**choice(0, 1))) == "running":
        continue
    assert test.decision == "promote"
    before = test.figures
    for _ in range(100):
        assert test.add(duel(**choice(1, 0))) == "promote"
    assert test.figures == before


def test_undecided_after_the_most_preferences() -> None:
    test = LiveTest(NEW, OLD, LiveTestSettings.model_validate({"max_preferences": 4}))
    assert [test.add(duel(**choice(i % 2, 1 - i % 2))) for i in range(4)][-2:] == ["running", "undecided"]


def test_version_is_not_compared_with_itself() -> None:
    with pytest.raises(ValueError, match="itself"):
        LiveTest(NEW, NEW, SETTINGS)


def chosen_with(win_rate: float, chance: random.Random) -> Event:
    """A choice between both, in either order, that the candidate wins with this probability."""
    versions = (NEW, OLD) if chance.random() < 0.5 else (OLD, NEW)
    better = versions.index(NEW if chance.random() < win_rate else OLD)
    return duel(versions, **choice(better, 1 - better))


def thumbed_with(new: float, old: float, chance: random.Random) -> Event:
    """A thumb on one answer of either version, up with this probability."""
    version, up = (NEW, new) if chance.random() < 0.5 else (OLD, old)
    return single(version, **thumb(chance.random() < up))


def decided(draw: Callable[[random.Random], Event]) -> list[tuple[Decision, float]]:
    """What twenty tests with seeds 0 to 19 decided, and after how many people."""
    outcomes = []
    for seed in range(20):
        chance, test = random.Random(seed), LiveTest(NEW, OLD, SETTINGS)
        while test.add(draw(chance)) == "running":
            pass
        outcomes.append((test.decision, test.figures["live_people"]))
    return outcomes


def test_poisoned_version_is_rolled_back_in_twenty_of_twenty_runs() -> None:
    """It wins 35% of its comparisons."""
    outcomes = decided(lambda chance: chosen_with(0.35, chance))
    assert [decision for decision, _ in outcomes].count("roll_back") == 20
    needed = sorted(count for _, count in outcomes)
    print(f"people until rollback: median {needed[10]:.0f}, most {needed[-1]:.0f}")
    assert needed[-1] <= 200


def test_good_version_is_promoted_in_at_least_eighteen_of_twenty_runs() -> None:
    """It wins 62% of its comparisons."""
    outcomes = decided(lambda chance: chosen_with(0.62, chance))
    decisions = [decision for decision, _ in outcomes]
    assert decisions.count("promote") >= 18
    assert decisions.count("roll_back") == 0
    needed = sorted(count for decision, count in outcomes if decision == "promote")
    print(f"people until promotion: median {needed[len(needed) // 2]:.0f}, most {needed[-1]:.0f}")
    assert needed[17] <= 300


def test_equal_version_is_rolled_back_in_at_most_one_of_twenty_runs() -> None:
    decisions = [decision for decision, _ in decided(lambda chance: chosen_with(0.5, chance))]
    assert decisions.count("roll_back") <= 1
    assert decisions.count("promote") <= 1


def test_thumbs_alone_roll_a_poisoned_version_back() -> None:
    """40% of its answers please where 70% of the live version's did: a win rate of 1/2 + (0.4 - 0.7) / 2 = 0.35."""
    outcomes = decided(lambda chance: thumbed_with(0.4, 0.7, chance))
    assert [decision for decision, _ in outcomes].count("roll_back") == 20
    assert max(count for _, count in outcomes) <= 300
