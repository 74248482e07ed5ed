"""Shapes of published pairs: transcripts, prompts under other names, and prompts of several keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rewardloop.formats.messages import Turn
from rewardloop_data.judgements import Equal, Judgement, Preferred
from rewardloop_data.rows import (
    Json,
    RowError,
    Turns,
    is_int,
    kind_of,
    messages_of,
    short,
    spoken,
    text_of,
    tools_in,
    turns_of,
)
from rewardloop_data.rows import common_start as start_of_both
from rewardloop_data.shapes.comparisons import PAIR_KEYS, answer, pair_checks
from rewardloop_data.shapes.shape import (
    PROMPT,
    Choices,
    Row,
    Shape,
    annotator_of,
    different,
    judged,
    number,
    response_in,
    text_prompt,
    with_system,
)
from rewardloop_data.transcripts import chatml, speakers

_CHATML_MARK = "<|im_start|>"


def _both(row: Row, texts: Iterable[Turns]) -> Iterable[Judgement]:
    chosen, rejected = texts
    prompt = start_of_both(chosen, rejected)
    if len(chosen) != len(prompt) + 1 or len(rejected) != len(prompt) + 1:
        raise RowError("chosen and rejected differ before their last turn, so that they answer different prompts")
    strength = pair_checks(row)
    yield judged(row, prompt, (chosen[-1].content, rejected[-1].content), Preferred(0, 1, strength))


def _transcripts(read: Callable[[str, str], Turns]) -> Callable[[Row, Choices], Iterable[Judgement]]:
    def read_row(row: Row, choices: Choices) -> Iterable[Judgement]:
        texts = {key: text_of(key, row[key]) for key in ("chosen", "rejected")}
        if "prompt" in row and not any(_is_transcript(text) for text in texts.values()):
            prompt = read("prompt", text_of("prompt", row["prompt"]))
            if prompt[-1].role == "assistant":
                raise RowError("prompt: ends with the assistant's turn")
            pair = [answer(key, text, prompt, choices) for key, text in texts.items()]
            yield judged(row, prompt, different(pair, "chosen and rejected"), Preferred(0, 1, pair_checks(row)))
            return
        yield from _both(row, (read(key, text) for key, text in texts.items()))

    return read_row


def _is_transcript(text: str) -> bool:
    return text.lstrip().startswith(("Human:", _CHATML_MARK))


def _all_begin(beginning: str) -> Callable[[Row], bool]:
    def fits(row: Row) -> bool:
        texts = (row["chosen"], row["rejected"])
        return "prompt" not in row and all(isinstance(t, str) and t.lstrip().startswith(beginning) for t in texts)

    return fits


def _is_bare(row: Row) -> bool:
    texts = (row["chosen"], row["rejected"])
    return all(isinstance(text, str) and not _is_transcript(text) for text in texts) and not (
        {"prompt", "question", "instruction", "conversations", "responses", "input"} & row.keys()
    )


def _implicit(row: Row, choices: Choices) -> Iterable[Judgement]:
    """Read TRL's implicit prompt as TRL does: what both texts begin with, up to the last blank."""
    chosen, rejected = text_of("chosen", row["chosen"]), text_of("rejected", row["rejected"])
    different((chosen, rejected), "chosen and rejected")
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same and chosen[same - 1] == " ":
        same -= 1
    prompt = text_prompt(row, choices, chosen[:same], "the beginning of chosen and rejected")
    texts = [response_in(key, text[same:], choices) for key, text in (("chosen", chosen), ("rejected", rejected))]
    yield judged(row, prompt, texts, Preferred(0, 1, pair_checks(row)))


def _orca(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = text_prompt(row, choices, text_of("question", row["question"]), "question")
    texts = [answer(key, row[key], prompt, choices) for key in ("chosen", "rejected")]
    yield judged(row, prompt, different(texts, "chosen and rejected"), Preferred(0, 1, pair_checks(row)))


def alpaca_prompt(row: Row, choices: Choices) -> Turns:
    """Return the prompt of Alpaca's keys: the system text, the turns of ``history``, and the instruction with its
    input, which follows after a line break. Raises RowError."""
    text = text_of("instruction", row["instruction"])
    more = row.get("input")
    if more is not None and not isinstance(more, str):
        raise RowError(f"input: is {kind_of(more)}, not text")
    if more and more.strip():
        text = f"{text}\n{more}"
    said: list[Turn] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError("history: is not a list of [question, answer]")
    for i, each in enumerate(history):
        if not isinstance(each, list) or len(each) != 2:
            raise RowError(f"history[{i}]: is not [question, answer]")
        said += [Turn("user", text_of(f"history[{i}]", each[0])), Turn("assistant", text_of(f"history[{i}]", each[1]))]
    last = Turn("user", text if choices.is_verbatim else spoken("instruction", text))
    return with_system(row.get("system"), (*tools_in(row), *said, last))


def _alpaca(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = alpaca_prompt(row, choices)
    texts = [answer(key, row[key], prompt, choices) for key in ("chosen", "rejected")]
    yield judged(row, prompt, different(texts, "chosen and rejected"), Preferred(0, 1, pair_checks(row)))


_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}


def sharegpt_turns(field: str, value: Json) -> Turns:
    """Return the turns of a list of {from, value}. Raises RowError."""
    if not isinstance(value, list):
        raise RowError(f"{field}: is {kind_of(value)}, not a list of {{from, value}}")
    messages: list[Json] = []
    for i, each in enumerate(value):
        if not isinstance(each, dict) or "from" not in each or "value" not in each:
            raise RowError(f"{field}[{i}]: is not a {{from, value}} message")
        role = _SHAREGPT_ROLES.get(str(each["from"]))
        if role is None:
            raise RowError(f"{field}[{i}].from: is {short(each['from'])}, not one of {', '.join(_SHAREGPT_ROLES)}")
        messages.append({"role": role, "content": each["value"]})
    return messages_of(field, messages)


def _sharegpt(row: Row, choices: Choices) -> Iterable[Judgement]:
    turns = sharegpt_turns("conversations", row["conversations"])
    if turns[-1].role != "user":
        raise RowError("conversations: does not end with the user's turn")
    prompt = with_system(row.get("system"), (*tools_in(row), *turns))
    texts = []
    for key in ("chosen", "rejected"):
        (turn,) = sharegpt_turns(key, [row[key]])
        texts.append(response_in(key, turn.content, choices))
    yield judged(row, prompt, different(texts, "chosen and rejected"), Preferred(0, 1, pair_checks(row)))


def _openai(row: Row, choices: Choices) -> Iterable[Judgement]:
    asked = row["input"]
    if not isinstance(asked, dict) or "messages" not in asked:
        raise RowError("input: has no messages")
    if more := [key for key in asked if key not in ("messages", "tools", "parallel_tool_calls", "model")]:
        raise RowError(f"input.{more[0]}: is not known, and may change what the row says")
    prompt = turns_of("input.messages", asked["messages"], asked.get("tools"))
    texts = [answer(key, row[key], prompt, choices) for key in ("preferred_output", "non_preferred_output")]
    yield judged(row, prompt, different(texts, "the outputs"), Preferred(0, 1))


def _webgpt(row: Row, choices: Choices) -> Iterable[Judgement]:
    question = row["question"]
    text = question.get("full_text") if isinstance(question, dict) else question
    prompt = text_prompt({}, choices, text_of("question", text), "question")
    texts = [response_in(key, row[key], choices) for key in ("answer_0", "answer_1")]
    scores = [number(key, row[key]) for key in ("score_0", "score_1")]
    if abs(scores[0] + scores[1]) > 1e-6 or abs(scores[0]) > 1:
        raise RowError("score_0 and score_1 are not opposite numbers of at most 1")
    different(texts)
    if scores[0] == scores[1]:
        yield judged(row, prompt, texts, Equal(0, 1))
    else:
        better = int(scores[1] > scores[0])
        yield judged(row, prompt, texts, Preferred(better, 1 - better, abs(scores[0])))


def _shp(row: Row, choices: Choices) -> Iterable[Judgement]:
    prompt = text_prompt({}, choices, text_of("history", row["history"]), "history")
    texts = [response_in(key, row[key], choices) for key in ("human_ref_A", "human_ref_B")]
    label = row["labels"]
    if isinstance(label, bool) or label not in (0, 1):
        raise RowError(f"labels: is {short(label)}, not 1 (A is preferred) or 0 (B is)")
    scores = [number(key, row[key]) for key in ("score_A", "score_B") if key in row]
    better = 1 - int(label)
    if len(scores) == 2 and scores[better] < scores[1 - better]:
        raise RowError("labels: contradicts score_A and score_B")
    yield judged(row, prompt, different(texts), Preferred(better, 1 - better))


def _summaries(row: Row, choices: Choices) -> Iterable[Judgement]:
    info, summaries = row["info"], row["summaries"]
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2:
        raise RowError("info and summaries: are not an object and two summaries")
    if info.get("post"):
        about = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post")]
    elif info.get("article"):
        about = [("TITLE: ", "title"), ("ARTICLE: ", "article")]
    else:
        raise RowError("info: has neither post nor article")
    lines = [f"{before}{info[key]}" for before, key in about if info.get(key)]
    prompt = text_prompt({}, choices, "\n\n".join([*lines, "TL;DR:"]), "info")
    texts = []
    for i, each in enumerate(summaries):
        if not isinstance(each, dict):
            raise RowError(f"summaries[{i}]: is no object")
        texts.append(response_in(f"summaries[{i}].text", each.get("text"), choices))
    choice = row["choice"]
    if not is_int(choice) or choice not in (0, 1):
        raise RowError(f"choice: is {short(choice)}, not 0 or 1")
    who = "" if row.get("worker") is None else annotator_of("worker", row["worker"])
    yield judged(row, prompt, different(texts), Preferred(choice, 1 - choice), who)


_HH = "{chosen, rejected}, texts of 'Human:' and 'Assistant:' turns"

SHAPES = (
    Shape(
        "hh-rlhf",
        _HH,
        "a choice between the last turns; with --format hh-rlhf also beside a prompt",
        ("chosen", "rejected"),
        _transcripts(speakers),
        reads=PAIR_KEYS,
        skips=frozenset(("prompt",)),
        fits=_all_begin("Human:"),
    ),
    Shape(
        "chatml",
        "{chosen, rejected}, ChatML texts",
        "a choice between the last turns; with --format chatml also beside a prompt",
        ("chosen", "rejected"),
        _transcripts(chatml),
        reads=PAIR_KEYS,
        skips=frozenset(("prompt",)),
        fits=_all_begin(_CHATML_MARK),
    ),
    Shape(
        "trl-implicit",
        "{chosen, rejected}, texts that begin with the prompt",
        "a choice, if --format trl-implicit says that the common beginning is the prompt",
        ("chosen", "rejected"),
        _implicit,
        reads=PROMPT | PAIR_KEYS,
        is_by_name=True,
    ),
    Shape(
        "bare-pair",
        "{chosen, rejected}, texts without a prompt",
        "nothing, because the prompt is in doubt",
        ("chosen", "rejected"),
        fits=_is_bare,
        way=(
            "prompt: is absent. If both texts begin with the prompt, --format trl-implicit takes their common "
            "beginning. If another key holds it, say --column prompt=KEY"
        ),
    ),
    Shape(
        "orca-pairs",
        "{system, question, chosen, rejected}",
        "a choice",
        ("question", "chosen", "rejected"),
        _orca,
        reads=PROMPT | PAIR_KEYS,
    ),
    Shape(
        "alpaca-pairs",
        "{instruction, input, chosen, rejected}, also with system and history",
        "a choice; the input follows the instruction after a line break",
        ("instruction", "chosen", "rejected"),
        _alpaca,
        reads=PROMPT | PAIR_KEYS | {"input", "history"},
        skips=frozenset(("prompt",)),
        fits=lambda row: "prompt" not in row,
    ),
    Shape(
        "sharegpt-pairs",
        "{conversations: [{from, value}], chosen: {from, value}, rejected: {from, value}}",
        "a choice",
        ("conversations", "chosen", "rejected"),
        _sharegpt,
        reads=PROMPT | PAIR_KEYS,
    ),
    Shape(
        "openai-preference",
        "{input: {messages, tools}, preferred_output, non_preferred_output}",
        "a choice",
        ("input", "preferred_output", "non_preferred_output"),
        _openai,
    ),
    Shape(
        "webgpt",
        "{question: {full_text}, answer_0, score_0, answer_1, score_1}",
        "a choice with its strength, or equality; quotes are left out",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        _webgpt,
        skips=frozenset(("quotes_0", "quotes_1", "tokens_0", "tokens_1")),
    ),
    Shape(
        "shp",
        "{history, human_ref_A, human_ref_B, labels: 1 if A is preferred}",
        "a choice",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        _shp,
        reads=frozenset(("score_A", "score_B")),
        skips=frozenset(
            (
                *("upvote_ratio", "c_root_id_A", "c_root_id_B", "created_at_utc_A", "created_at_utc_B", "score_ratio"),
                *("seconds_difference", "post_id"),
            )
        ),
    ),
    Shape(
        "summarize-from-feedback",
        "{info: {post or article, title}, summaries: [{text}, {text}], choice, worker}",
        "a choice; the prompt is written as in the paper, with TL;DR at its end",
        ("info", "summaries", "choice"),
        _summaries,
        skips=frozenset(("extra",)),
    ),
)
