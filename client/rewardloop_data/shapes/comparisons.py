"""Shapes of comparisons that this project documents, and those of TRL and HelpSteer that are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import combinations

from rewardloop_data.judgements import Equal, Judgement, Ordered, Preferred
from rewardloop_data.rows import (
    Json,
    RowError,
    Turns,
    completion_of,
    is_int,
    messages_of,
    short,
    spoken,
    text_of,
    tools_in,
    turns_of,
)
from rewardloop_data.rows import common_start as start_of_both
from rewardloop_data.shapes.shape import (
    PROMPT,
    Choices,
    Row,
    Shape,
    annotator_of,
    different,
    index_doubt,
    index_marks,
    index_of,
    judged,
    number,
    prompt_in,
    response_in,
    responses_in,
    with_system,
)

_STRONGEST = 3  # HelpSteer's grades go from -3 to 3
_SCORES = (
    *(("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating")),
    *(("chosen_avg_rating", "rejected_avg_rating"), ("chosen_reward", "rejected_reward")),
)
PAIR_KEYS = frozenset((*(key for both in _SCORES for key in both), "margin", "votes", "strength"))
_DISTILABEL = frozenset(("generations", "generation_models", "ratings", "rationales", "distilabel_metadata"))


def pair_checks(row: Row) -> float | None:
    """Return the strength of a pair, if its row says it. Raises RowError if the row contradicts the pair."""
    for better, worse in _SCORES:
        if better in row and worse in row and number(better, row[better]) < number(worse, row[worse]):
            raise RowError(
                f"{better}: is below {worse}, so that the scores contradict the choice: leave out what is wrong"
            )
    margin = row.get("margin")
    if margin is not None and number("margin", margin) < 0:
        raise RowError(f"margin: is {short(margin)}, which contradicts the choice")
    value = row.get("strength")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise RowError(f"strength: is {short(value)}, not above 0 and at most 1")
    return float(value)


def answer(field: str, value: Json, prompt: Turns, choices: Choices) -> str:
    """Return the assistant's one turn after the prompt. Raises RowError."""
    text = completion_of(field, value, prompt)
    return text if choices.is_verbatim else spoken(field, text)


def _pair(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = _whole_prompt(row, choices)
    texts = [answer(key, row[key], prompt, choices) for key in ("chosen", "rejected")]
    strength = pair_checks(row)
    yield judged(row, prompt, different(texts, "chosen and rejected"), Preferred(0, 1, strength))


def _whole_prompt(row: Row, choices: Choices) -> Turns:
    """Return the prompt, with the turns before it if chosen and rejected are whole conversations. Raises RowError."""
    prompt = prompt_in(row, choices)
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(row["prompt"], str) and isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 1:
        said = start_of_both(messages_of("chosen", chosen), messages_of("rejected", rejected))
        if said[-1] != prompt[-1]:
            raise RowError("chosen and rejected: do not begin with a conversation that ends with the prompt")
        prompt = with_system(row.get("system"), (*tools_in(row), *said))
    return prompt


def _conversations(row: Row, choices: Choices) -> Iterable[Judgement]:
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise RowError("prompt: is absent")
    said = start_of_both(messages_of("chosen", chosen), messages_of("rejected", rejected))
    prompt = with_system(row.get("system"), (*tools_in(row), *said))
    texts = [answer(key, row[key], said, choices) for key in ("chosen", "rejected")]
    yield judged(row, prompt, different(texts, "chosen and rejected"), Preferred(0, 1, pair_checks(row)))


def _annotations(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt, responses = prompt_in(row, choices), responses_in(row, choices)
    annotations = row["annotations"]
    if len(responses) != 2 or not isinstance(annotations, list):
        raise RowError("annotations: need a list, and two responses")
    for i, each in enumerate(annotations):
        if not isinstance(each, dict):
            raise RowError(f"annotations[{i}]: is no object")
        choice, who = each.get("choice"), each.get("annotator")
        annotator = "" if who is None else annotator_of(f"annotations[{i}].annotator", who)
        if choice == "tie":
            yield judged(row, prompt, responses, Equal(0, 1), annotator)
        elif is_int(choice):
            better = index_of(row, f"annotations[{i}].choice", choice, 2, choices)
            yield judged(row, prompt, responses, Preferred(better, 1 - better), annotator)
        else:
            raise RowError(f"annotations[{i}].choice: is {short(choice)}, not 0, 1 or 'tie'")


def _annotation_marks(row: Row) -> Iterable[str]:
    annotations = row["annotations"]
    for each in annotations if isinstance(annotations, list) else ():
        if isinstance(each, dict):
            yield from index_marks(row, each.get("choice"), 2)


def _chosen_index(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt, responses = prompt_in(row, choices), responses_in(row, choices)
    chosen = index_of(row, "chosen", row["chosen"], len(responses), choices)
    votes = row.get("votes")
    if isinstance(votes, list) and len(votes) == len(responses):
        counts = [number("votes", each) for each in votes]
        if counts[chosen] < max(counts):
            raise RowError("votes: contradict the choice")
    strength = pair_checks(row)
    for rejected in (i for i in range(len(responses)) if i != chosen):
        yield judged(row, prompt, responses, Preferred(chosen, rejected, strength))


def _chosen_marks(row: Row) -> Iterable[str]:
    responses = row["responses"]
    return index_marks(row, row["chosen"], len(responses) if isinstance(responses, list) else 0)


def _order(row: Row, choices: Choices) -> Iterable[Judgement]:
    responses = responses_in(row, choices)
    yield judged(row, prompt_in(row, choices), responses, Ordered(_permutation("order", row["order"], len(responses))))


def _permutation(key: str, order: Json, count: int) -> tuple[int, ...]:
    if not isinstance(order, list):
        raise RowError(f"{key}: is not a list of indices")
    indices = [index for index in order if is_int(index)]
    if len(order) < 2 or len(indices) < len(order) or sorted(indices) != list(range(count)):
        raise RowError(f"{key}: is not an order of all {count} responses (two or more)")
    return tuple(indices)


def _ranking(row: Row, choices: Choices) -> Iterable[Judgement]:
    responses, ranking = responses_in(row, choices), row["ranking"]
    if "ranks" in row and not _agree(ranking, row["ranks"]):
        raise RowError("ranks: is not what ranking says as an order, the best first")
    if choices.rankings == "ranks":
        yield from ranked(row, prompt_in(row, choices), responses, ranking)
        return
    if isinstance(ranking, list) and choices.indices == "one-based":
        ranking = [each - 1 if is_int(each) else each for each in ranking]
    order = _permutation("ranking", ranking, len(responses))
    yield judged(row, prompt_in(row, choices), responses, Ordered(order))


def ranked(row: Row, prompt: Turns, responses: tuple[str, ...], ranks: Json) -> Iterable[Judgement]:
    """Yield what the rank of each response says, of which the lowest is the best. Raises RowError."""
    if not isinstance(ranks, list) or len(ranks) != len(responses) or len(ranks) < 2:
        raise RowError(f"ranking: is not a rank of each of {len(responses)} responses (two or more)")
    values = [number("ranking", rank) for rank in ranks]
    if len(set(values)) == len(values):
        yield judged(row, prompt, responses, Ordered(tuple(sorted(range(len(values)), key=values.__getitem__))))
        return
    for first, second in combinations(range(len(values)), 2):
        two = (responses[first], responses[second])
        if values[first] == values[second]:
            yield judged(row, prompt, two, Equal(0, 1))
        else:
            better = int(values[second] < values[first])
            yield judged(row, prompt, two, Preferred(better, 1 - better))


def _agree(ranking: Json, ranks: Json) -> bool:
    """Return whether a ranking is the order of ranks."""
    if not isinstance(ranking, list) or not isinstance(ranks, list) or len(ranking) != len(ranks):
        return False
    places = [ranks[i] for i in ranking if is_int(i) and 0 <= i < len(ranks)]
    numbers = [place for place in places if is_int(place)]
    return len(numbers) == len(ranks) and numbers == sorted(numbers)


def _ranking_marks(row: Row) -> Iterable[str]:
    ranking = row["ranking"]
    if "ranks" in row and _agree(ranking, row["ranks"]):
        return
    if isinstance(ranking, list) and all(map(is_int, ranking)):
        order = [int(each) for each in ranking if is_int(each)]
        if sorted(order) != list(range(len(order))):
            yield "no order from 0"
        elif [order[i] for i in order] != list(range(len(order))):
            yield "rank or order"


def _ranking_doubt(marks: Counter[str], choices: Choices) -> str:
    if choices.rankings or not marks["rank or order"] + marks["no order from 0"]:
        return ""
    return (
        "ranking may hold the rank of each response, or the responses in their order: say --ranks (the lowest number "
        "is the best) or --best-first (indices, the best first; with --one-based if they count from 1)"
    )


_WINNERS = {
    **dict.fromkeys(("a", "model_a", "response_a", "left", "first"), 0),
    **dict.fromkeys(("b", "model_b", "response_b", "right", "second"), 1),
    **dict.fromkeys(("tie", "ties", "tie (bothbad)", "both", "equal", "both_bad", "neither"), -1),
}


def _winner(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = prompt_in(row, choices)
    texts = tuple(response_in(key, row[key], choices) for key in ("response_a", "response_b"))
    said = row["winner"] if isinstance(row["winner"], list) else [row["winner"]]
    people: list[str | None] = [None] * len(said)
    if isinstance(row.get("annotator"), list):
        named = row["annotator"]
        assert isinstance(named, list)
        if len(named) != len(said):
            raise RowError(f"annotator: has {len(named)} entries and winner {len(said)}")
        people = [annotator_of("annotator", each) for each in named]
    rest = {key: value for key, value in row.items() if not isinstance(value, list) or key != "annotator"}
    for value, who in zip(said, people, strict=True):
        yield judged(rest, prompt, texts, winner(value, texts, choices), who)


def winner(value: Json, texts: tuple[str, ...], choices: Choices) -> Preferred | Equal:
    """Return what the name of the winner says. Raises RowError."""
    name = value.strip().lower() if isinstance(value, str) else ""
    by_column = [choices.columns.get(key, "").rpartition(".")[2].lower() for key in ("response_a", "response_b")]
    place = by_column.index(name) if name and name in by_column else _WINNERS.get(name)
    if place is None:
        raise RowError(f"winner: is {short(value)}, not a, b or tie")
    if place < 0:
        return Equal(0, 1)
    different(texts)
    return Preferred(place, 1 - place)


def _graded(row: Row, choices: Choices) -> Iterable[Judgement]:
    """Read HelpSteer's rows: a grade from -3 to 3, below 0 if the first response is better."""
    by_context = "context" in row
    names = ("response1", "response2") if by_context else ("response_1", "response_2")
    key = "overall_preference" if by_context else "preference_strength"
    prompt = turns_of("context", row["context"]) if by_context else prompt_in(row, choices)
    grade, texts = row[key], [response_in(name, text_of(name, row[name]), choices) for name in names]
    if isinstance(grade, float) and grade.is_integer():
        grade = int(grade)
    if not is_int(grade) or abs(grade) > _STRONGEST:
        raise RowError(f"{key}: is {short(grade)}, not a whole number from -{_STRONGEST} to {_STRONGEST}")
    different(texts)
    if grade == 0:
        yield judged(row, prompt, texts, Equal(0, 1))
        return
    better = int(grade > 0)
    yield judged(row, prompt, texts, Preferred(better, 1 - better, abs(grade) / _STRONGEST))


def _is_listed(row: Row) -> bool:
    return isinstance(row["chosen"], list) and "prompt" not in row


SHAPES = (
    Shape(
        "annotations",
        '{prompt, responses, annotations: [{annotator, choice: 0, 1 or "tie"}]}',
        "a choice or a tie for each annotation",
        ("prompt", "responses", "annotations"),
        _annotations,
        reads=PROMPT | {"index_base"},
        skips=frozenset(("chosen", "votes")),
        marks=_annotation_marks,
        doubt=index_doubt,
        is_own=True,
    ),
    Shape(
        "order",
        "{prompt, responses, order}, indices from 0, the best first",
        "a ranking",
        ("prompt", "responses", "order"),
        _order,
        reads=PROMPT,
        is_own=True,
    ),
    Shape(
        "ranking",
        "{prompt, responses, ranking}",
        "a ranking; --ranks or --best-first says how, unless both are the same in every row",
        ("prompt", "responses", "ranking"),
        _ranking,
        reads=PROMPT | {"ranks"},
        marks=_ranking_marks,
        doubt=_ranking_doubt,
        is_own=True,
    ),
    Shape(
        "chosen-index",
        "{prompt, responses, chosen: index}",
        "a choice against each other response; --one-based or --zero-based says how, unless some index is 0",
        ("prompt", "responses", "chosen"),
        _chosen_index,
        reads=PROMPT | PAIR_KEYS | {"index_base"},
        fits=lambda row: "annotations" not in row,
        marks=_chosen_marks,
        doubt=index_doubt,
        is_own=True,
    ),
    Shape(
        "pair",
        "{prompt, chosen, rejected}, texts or lists of {role, content}",
        "a choice",
        ("prompt", "chosen", "rejected"),
        _pair,
        reads=PROMPT | PAIR_KEYS,
        skips=_DISTILABEL,
        is_own=True,
    ),
    Shape(
        "conversations",
        "{chosen, rejected}, two conversations that begin alike",
        "a choice",
        ("chosen", "rejected"),
        _conversations,
        reads=PROMPT | PAIR_KEYS,
        skips=_DISTILABEL,
        fits=_is_listed,
        is_own=True,
    ),
    Shape(
        "helpsteer2-preference",
        "{prompt, response_1, response_2, preference_strength}, from -3 (the first is better) to 3",
        "a choice with its strength, or a tie",
        ("prompt", "response_1", "response_2", "preference_strength"),
        _graded,
        reads=PROMPT,
        skips=frozenset(
            (
                *("preference_statement", "preference_elaboration", "three_most_similar_preferences"),
                "all_preferences_unprocessed",
            )
        ),
        is_own=True,
    ),
    Shape(
        "helpsteer3",
        "{context, response1, response2, overall_preference}, from -3 (the first is better) to 3",
        "a choice with its strength, or a tie",
        ("context", "response1", "response2", "overall_preference"),
        _graded,
        skips=frozenset(("individual_preference",)),
        is_own=True,
    ),
    Shape(
        "winner",
        "{prompt, response_a, response_b, winner: a, b or tie}",
        "a choice or a tie, for each entry if winner is a list",
        ("prompt", "response_a", "response_b", "winner"),
        _winner,
        reads=PROMPT,
        is_own=True,
    ),
)
