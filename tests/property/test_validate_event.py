"""Whatever is sent as a signal is either taken or refused with named violations; nothing else happens."""

from __future__ import annotations

import math

from hypothesis import event as note
from hypothesis import given
from hypothesis import strategies as st

from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_server.calls.errors import InvalidRequest
from rewardloop_server.calls.validate import Limits, validate_event

LIMITS = Limits(max_text_bytes=40)

TEXTS = st.one_of(
    st.sampled_from(["", " ", "a", "b", "x" * 41]), st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
)
INDICES = st.one_of(st.integers(-1, 4), st.integers(-(2**31), 2**31 - 1))
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
TIMES = st.builds(dict, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1))
MESSAGES = st.builds(
    common_pb2.Message, role=st.one_of(st.sampled_from(["user", "assistant", "system"]), TEXTS), content=TEXTS
)
PROMPTS = st.one_of(
    st.builds(common_pb2.Prompt),
    st.builds(common_pb2.Prompt, text=TEXTS),
    st.lists(MESSAGES, max_size=4).map(
        lambda messages: common_pb2.Prompt(conversation=common_pb2.Conversation(messages=messages))
    ),
)
SIGNALS = st.one_of(
    st.just({}),
    st.builds(feedback_pb2.Choice, chosen=INDICES, rejected=INDICES).map(lambda s: {"choice": s}),
    st.builds(feedback_pb2.Ranking, order=st.one_of(st.lists(INDICES, max_size=5), st.permutations([0, 1, 2]))).map(
        lambda s: {"ranking": s}
    ),
    st.builds(feedback_pb2.Thumb, response=INDICES, up=st.booleans()).map(lambda s: {"thumb": s}),
    st.builds(feedback_pb2.Rating, response=INDICES, value=NUMBERS, minimum=NUMBERS, maximum=NUMBERS).map(
        lambda s: {"rating": s}
    ),
    st.builds(feedback_pb2.Edit, response=INDICES, edited_text=TEXTS).map(lambda s: {"edit": s}),
    st.builds(feedback_pb2.Tie, first=INDICES, second=INDICES).map(lambda s: {"tie": s}),
)


@st.composite
def events(draw: st.DrawFn) -> feedback_pb2.FeedbackEvent:
    return feedback_pb2.FeedbackEvent(
        event_id=draw(TEXTS),
        generation_id=draw(st.one_of(st.just(""), TEXTS)),
        prompt=draw(st.one_of(st.none(), PROMPTS)),
        responses=draw(st.lists(TEXTS, max_size=4)),
        annotator_id=draw(TEXTS),
        source=draw(st.integers(-1, 5)),  # type: ignore[arg-type]
        tags=draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
        event_time=draw(st.one_of(st.none(), TIMES)),
        arrival_time=draw(st.one_of(st.none(), st.none(), TIMES)),
        **draw(SIGNALS),
    )


@given(events())
def test_event_passes_or_is_refused_with_violations(event: feedback_pb2.FeedbackEvent) -> None:
    error = _refusal(event)
    if error is None:
        note("taken")
        _assert_usable(event)
    else:
        note("refused")
        assert error.violations
        assert all(v.description for v in error.violations)


@given(
    st.lists(st.sampled_from("abc"), min_size=3, max_size=3),
    st.one_of(
        st.permutations([0, 1, 2]).map(lambda order: {"ranking": feedback_pb2.Ranking(order=order)}),
        st.permutations([0, 1, 2]).map(lambda p: {"choice": feedback_pb2.Choice(chosen=p[0], rejected=p[1])}),
        st.permutations([0, 1, 2]).map(lambda p: {"tie": feedback_pb2.Tie(first=p[0], second=p[1])}),
        st.tuples(st.integers(0, 2), st.booleans()).map(
            lambda t: {"thumb": feedback_pb2.Thumb(response=t[0], up=t[1])}
        ),
        st.lists(st.floats(-100, 100), min_size=3, max_size=3, unique=True).map(
            lambda v: {"rating": feedback_pb2.Rating(value=sorted(v)[1], minimum=min(v), maximum=max(v))}
        ),
    ),
)
def test_sound_event_passes(responses: list[str], signal: dict[str, object]) -> None:
    event = feedback_pb2.FeedbackEvent(
        event_id="e",
        prompt=common_pb2.Prompt(text="hi"),
        responses=responses,
        **signal,  # type: ignore[arg-type]
    )
    validate_event(event, LIMITS)


def _refusal(event: feedback_pb2.FeedbackEvent) -> InvalidRequest | None:
    try:
        validate_event(event, LIMITS)
    except InvalidRequest as error:
        return error
    return None


def _assert_usable(event: feedback_pb2.FeedbackEvent) -> None:
    """What a trainer relies on, said independently of the validator."""
    count = len(event.responses) if not event.generation_id else 2**31
    kind = event.WhichOneof("signal")
    assert event.event_id
    if not event.generation_id:
        assert all(response.strip() for response in event.responses)
        assert event.prompt.text.strip() or event.prompt.conversation.messages
    if kind == "choice":
        assert 0 <= event.choice.chosen < count
        assert 0 <= event.choice.rejected < count
        assert event.choice.chosen != event.choice.rejected
    elif kind == "ranking":
        assert sorted(event.ranking.order) == list(range(len(event.ranking.order)))
        assert len(event.ranking.order) == count or event.generation_id
    elif kind == "rating":
        assert math.isfinite(event.rating.value)
        assert event.rating.minimum <= event.rating.value <= event.rating.maximum
    elif kind == "edit":
        assert event.edit.edited_text.strip()
    elif kind == "thumb":
        assert 0 <= event.thumb.response < count
    else:
        assert kind == "tie"
        assert 0 <= event.tie.first < count
        assert 0 <= event.tie.second < count
        assert event.tie.first != event.tie.second
