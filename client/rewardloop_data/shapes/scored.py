"""Shapes of published comparisons in which several responses have scores, ranks or winners, and trees of replies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from rewardloop.formats.messages import Turn
from rewardloop_data.judgements import Equal, Judgement, Preferred
from rewardloop_data.rows import Json, RowError, Turns, kind_of, messages_of, short, spoken, text_of
from rewardloop_data.shapes.comparisons import ranked, winner
from rewardloop_data.shapes.shape import (
    Choices,
    Row,
    Shape,
    annotator_of,
    by_score,
    different,
    judged,
    number,
    response_in,
    text_prompt,
)
from rewardloop_data.transcripts import speakers


def _objects(row: Row, key: str) -> list[dict[str, Json]]:
    values = row[key]
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise RowError(f"{key}: is not a list of objects")
    return [each for each in values if isinstance(each, dict)]


def _asked(key: str, choices: Choices) -> str:
    """Return by what to judge. Raises RowError while nobody has said it."""
    if key not in choices.columns:
        raise RowError(f"--column {key}= does not say by what to judge")
    return choices.columns[key]


def inside(value: Json, path: str) -> Json:
    """Return what a path of keys leads to within nested objects; None if there is nothing."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _ultrafeedback(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = text_prompt({}, choices, text_of("instruction", row["instruction"]), "instruction")
    path, texts, scores = _asked("score", choices), [], []
    for i, each in enumerate(_objects(row, "completions")):
        texts.append(response_in(f"completions[{i}].response", each.get("response"), choices))
        scores.append(number(f"completions[{i}].{path}", inside(each, path)))
    yield from by_score(row, prompt, texts, scores)


def _nectar(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = speakers("prompt", text_of("prompt", row["prompt"]))
    if prompt[-1].role != "user":
        raise RowError("prompt: ends with the assistant's turn")
    answers = _objects(row, "answers")
    texts = [response_in(f"answers[{i}].answer", each.get("answer"), choices) for i, each in enumerate(answers)]
    yield from ranked(row, prompt, tuple(texts), [each.get("rank") for each in answers])


def _arena(row: Row, choices: Choices) -> Iterable[Judgement]:
    talks = []
    for key in ("conversation_a", "conversation_b"):
        value = row[key]
        if not isinstance(value, list):
            raise RowError(f"{key}: is {kind_of(value)}, not a list of messages")
        turns = messages_of(key, value)
        judged_turn = row.get("turn")
        if judged_turn is not None:
            turns = turns[: 2 * int(number("turn", judged_turn))]
        if not turns or turns[-1].role != "assistant":
            raise RowError(f"{key}: does not end with the assistant's turn")
        talks.append(turns)
    first, second = talks
    if first[:-1] != second[:-1]:
        raise RowError("the conversations differ before their last turn, so that they answer different prompts")
    texts = [response_in(key, talk[-1].content, choices) for key, talk in zip("ab", talks, strict=True)]
    who = "" if row.get("judge") is None else annotator_of("judge", row["judge"])
    yield judged(row, first[:-1], texts, winner(row["winner"], (texts[0], texts[1]), choices), who)


def _kaggle(row: Row, choices: Choices) -> Iterable[Judgement]:
    lists = {key: _one_text(key, row[key]) for key in ("prompt", "response_a", "response_b")}
    prompt = text_prompt({}, choices, lists["prompt"], "prompt")
    texts = [response_in(key, lists[key], choices) for key in ("response_a", "response_b")]
    keys = ("winner_model_a", "winner_model_b", "winner_tie")
    flags = [number(key, row[key]) for key in keys]
    if sorted(flags) != [0.0, 0.0, 1.0]:
        raise RowError(f"{', '.join(keys)}: not exactly one is 1")
    place = flags.index(1.0)
    if place == 2:
        yield judged(row, prompt, texts, Equal(0, 1))
    else:
        yield judged(row, prompt, different(texts), Preferred(place, 1 - place))


def _one_text(key: str, value: Json) -> str:
    """Return the only text of a list that is written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowError(f"{key}: is not a list of texts in JSON") from error
    if not isinstance(value, list) or len(value) != 1:
        raise RowError(f"{key}: has several turns, whose earlier answers differ between the models")
    return text_of(key, value[0])


def _safe(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = text_prompt({}, choices, text_of("prompt", row["prompt"]), "prompt")
    texts = [response_in(key, row[key], choices) for key in ("response_0", "response_1")]
    key = _asked("chosen", choices)
    if key not in ("better_response_id", "safer_response_id"):
        raise RowError(f"--column chosen={key}: is neither better_response_id nor safer_response_id")
    better = row[key]
    if isinstance(better, bool) or better not in (0, 1):
        raise RowError(f"{key}: is {short(better)}, not 0 or 1")
    yield judged(row, prompt, different(texts), Preferred(int(better), 1 - int(better)))


def _tree(row: Row, choices: Choices) -> Iterable[Judgement]:
    root = row["prompt"]
    if not isinstance(root, dict):
        raise RowError(f"prompt: is {kind_of(root)}, not the root of a tree")
    yield from _replies(row, choices, root, (), 0)


def _replies(row: Row, choices: Choices, node: dict[str, Json], before: Turns, depth: int) -> Iterator[Judgement]:
    if depth > 100:
        raise RowError("prompt: is nested too deeply")
    role = {"prompter": "user", "assistant": "assistant"}.get(str(node.get("role")))
    if role is None:
        raise RowError(f"role: is {short(node.get('role'))}, not prompter or assistant")
    text = text_of("text", node.get("text"))
    said = (*before, Turn(role, text if choices.is_verbatim else spoken("text", text)))
    replies = [each for each in _objects(node, "replies") if not each.get("deleted")] if node.get("replies") else []
    placed = [each for each in replies if each.get("rank") is not None]
    if role == "user" and len(placed) > 1:
        texts = tuple(response_in("replies.text", each.get("text"), choices) for each in placed)
        yield from ranked(row, said, texts, [each["rank"] for each in placed])
    for each in replies:
        yield from _replies(row, choices, each, said, depth + 1)


def _is_tree(row: Row) -> bool:
    return isinstance(row["prompt"], dict)


_PKU = frozenset(
    (
        *("is_response_0_safe", "is_response_1_safe", "response_0_severity_level", "response_1_severity_level"),
        *("response_0_harm_category", "response_1_harm_category", "prompt_source", "response_0_source"),
        *("response_1_source", "response_0_sha256", "response_1_sha256"),
    )
)

SHAPES = (
    Shape(
        "ultrafeedback",
        "{instruction, completions: [{response, overall_score, annotations}]}",
        "a ranking, or a choice or equality of each two; --column score= says by which score",
        ("instruction", "completions"),
        _ultrafeedback,
        skips=frozenset(("correct_answers", "incorrect_answers")),
        asks="score",
        doubt=lambda marks, choices: (
            ""
            if "score" in choices.columns
            else "each completion has several scores: say --column score=fine-grained_score, score=overall_score or "
            "score=annotations.helpfulness.Rating"
        ),
    ),
    Shape(
        "nectar",
        "{prompt, answers: [{answer, rank}]}, a prompt of 'Human:' and 'Assistant:' turns",
        "a ranking; rank 1 is the best",
        ("prompt", "answers"),
        _nectar,
        skips=frozenset(("num_responses", "good_natured")),
    ),
    Shape(
        "chatbot-arena",
        "{conversation_a, conversation_b, winner, judge, turn}",
        "a choice or equality between the last answers, or those of the turn that was judged",
        ("conversation_a", "conversation_b", "winner"),
        _arena,
        reads=frozenset(("judge", "turn")),
        skips=frozenset(("anony", "openai_moderation", "toxic_chat_tag", "toxic", "redacted", "conv_metadata")),
    ),
    Shape(
        "arena-table",
        "{prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie}, lists in JSON",
        "a choice or equality",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        _kaggle,
    ),
    Shape(
        "pku-saferlhf",
        "{prompt, response_0, response_1, better_response_id, safer_response_id}",
        "a choice; --column chosen= says which of the two ids",
        ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
        _safe,
        skips=_PKU,
        asks="chosen",
        doubt=lambda marks, choices: (
            ""
            if "chosen" in choices.columns
            else "it holds two judgements: say --column chosen=better_response_id, or --column "
            "chosen=safer_response_id with --aspect and the name of the reward model that learns what is safe"
        ),
    ),
    Shape(
        "oasst-tree",
        "{message_tree_id, prompt: {role, text, replies: [{rank, ..}]}}",
        "a ranking of the replies to each of the user's messages; rank 0 is the best",
        ("prompt", "message_tree_id"),
        _tree,
        skips=frozenset(("tree_state",)),
        fits=_is_tree,
    ),
)
