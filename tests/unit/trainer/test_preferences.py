from itertools import pairwise

import pytest

from rewardloop.formats.text import Turn
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_trainer.data.preferences import (
    SOURCE_WEIGHTS,
    Labelled,
    Pair,
    RankedList,
    TiedPair,
    comparisons_in,
    from_event,
    from_events,
    pairs_of,
)

PROMPT = (Turn("user", "Why is the sky blue?"),)


def event(responses: list[str], **signal: object) -> feedback_pb2.FeedbackEvent:
    return feedback_pb2.FeedbackEvent(
        event_id="e1",
        prompt=common_pb2.Prompt(text="Why is the sky blue?"),
        responses=responses,
        tags={"team": "a"},
        **signal,  # type: ignore[arg-type]
    )


def test_choice_becomes_a_pair_with_its_event_and_tags() -> None:
    given = event(["a", "b", "c"], choice=feedback_pb2.Choice(chosen=2, rejected=0))
    assert from_event(given) == [Pair(PROMPT, "c", "a", 1.0, "e1", {"team": "a"})]


def test_records_say_who_judged_and_how_strongly() -> None:
    choice = feedback_pb2.Choice(chosen=1, rejected=0, strength=0.25)
    given = event(["a", "b"], choice=choice, annotator_id="u-1", source=feedback_pb2.SOURCE_LLM_JUDGE)
    (pair,) = from_event(given)
    assert isinstance(pair, Pair)
    assert (pair.annotator, pair.source, pair.margin) == ("u-1", "llm_judge", 0.25)
    ranked = from_event(event(["a", "b", "c"], ranking=feedback_pb2.Ranking(order=[0, 1, 2]), annotator_id="u-2"))
    assert {(p.event_id, p.annotator, p.source, p.margin) for p in pairs_of(ranked)} == {("e1", "u-2", "human", 0.0)}


def test_ranking_of_three_keeps_its_order() -> None:
    given = event(["a", "b", "c"], ranking=feedback_pb2.Ranking(order=[1, 2, 0]))
    assert from_event(given) == [RankedList(PROMPT, ("b", "c", "a"), comparisons_in(3), "e1", {"team": "a"})]


def test_a_stated_ranking_counts_more_the_more_it_orders_and_less_than_as_many_choices() -> None:
    counted = [comparisons_in(m) for m in range(2, 65)]
    assert counted[0] == 1.0
    assert all(1 <= before < after < m for m, (before, after) in enumerate(pairwise(counted), 3))


@pytest.mark.parametrize(
    ("source", "weight"),
    [
        (feedback_pb2.SOURCE_HUMAN, comparisons_in(8)),
        (feedback_pb2.SOURCE_LLM_JUDGE, comparisons_in(8)),
        (feedback_pb2.SOURCE_IMPLICIT, SOURCE_WEIGHTS["implicit"]),
    ],
)
def test_what_a_ranking_of_eight_weighs(source: feedback_pb2.Source, weight: float) -> None:
    """An inferred one weighs less than one choice of a person, however long it is."""
    given = event(list("abcdefgh"), ranking=feedback_pb2.Ranking(order=range(8)), source=source)
    records = from_event(given)
    assert [record.weight for record in records] == [pytest.approx(weight)]
    assert sum(pair.weight for pair in pairs_of(records)) == pytest.approx(weight)


def test_ranking_of_two_is_a_pair() -> None:
    given = event(["a", "b"], ranking=feedback_pb2.Ranking(order=[1, 0]))
    assert from_event(given) == [Pair(PROMPT, "b", "a", 1.0, "e1", {"team": "a"})]


def test_a_text_ranked_twice_keeps_its_best_place() -> None:
    given = event(["a", "b", "a", "c"], ranking=feedback_pb2.Ranking(order=[0, 1, 2, 3]))
    assert [r.responses for r in from_event(given) if isinstance(r, RankedList)] == [("a", "b", "c")]


@pytest.mark.parametrize(("up", "label"), [(True, 1.0), (False, 0.0)])
def test_thumb_becomes_a_label(up: bool, label: float) -> None:
    given = event(["a", "b"], thumb=feedback_pb2.Thumb(response=1, up=up))
    assert from_event(given) == [Labelled(PROMPT, "b", label, 1.0, "e1", {"team": "a"})]


@pytest.mark.parametrize(("value", "label"), [(1.0, 0.0), (4.0, 0.75), (5.0, 1.0)])
def test_rating_is_mapped_onto_zero_to_one(value: float, label: float) -> None:
    rating = feedback_pb2.Rating(response=0, value=value, minimum=1, maximum=5)
    (record,) = from_event(event(["a"], rating=rating))
    assert isinstance(record, Labelled)
    assert record.label == label


def test_edit_prefers_the_rewrite() -> None:
    given = event(["teh sky"], edit=feedback_pb2.Edit(response=0, edited_text="the sky"))
    assert from_event(given) == [Pair(PROMPT, "the sky", "teh sky", 1.0, "e1", {"team": "a"})]


def test_tie_becomes_a_tied_pair() -> None:
    given = event(["a", "b"], tie=feedback_pb2.Tie(first=1, second=0))
    assert from_event(given) == [TiedPair(PROMPT, "b", "a", 1.0, "e1", {"team": "a"})]


def test_implicit_signals_weigh_less() -> None:
    given = event(["a", "b"], choice=feedback_pb2.Choice(chosen=0, rejected=1), source=feedback_pb2.SOURCE_IMPLICIT)
    assert from_event(given)[0].weight < 1.0


def test_comparisons_of_equal_texts_are_dropped_and_counted() -> None:
    found = from_events(
        [
            event(["a", "a"], choice=feedback_pb2.Choice(chosen=0, rejected=1)),
            event(["a", "a"], tie=feedback_pb2.Tie(first=0, second=1)),
            event(["a", "a"], ranking=feedback_pb2.Ranking(order=[0, 1])),
            event(["a"], edit=feedback_pb2.Edit(response=0, edited_text="a")),
            event(["a", "b"], choice=feedback_pb2.Choice(chosen=0, rejected=1)),
        ]
    )
    assert (len(found.records), found.identical) == (1, 4)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_outside_the_responses_is_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        from_event(event(["a", "b"], thumb=feedback_pb2.Thumb(response=index, up=True)))


def test_an_event_without_a_signal_is_an_error() -> None:
    with pytest.raises(ValueError, match="no signal"):
        from_event(event(["a"]))


def test_a_ranking_gives_all_pairs_which_share_its_weight() -> None:
    pairs = pairs_of([RankedList(PROMPT, ("a", "b", "c"), 1.5), TiedPair(PROMPT, "x", "y"), Pair(PROMPT, "d", "e")])
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "b"), ("a", "c"), ("b", "c"), ("d", "e")]
    assert [p.weight for p in pairs] == pytest.approx([0.5, 0.5, 0.5, 1.0])
