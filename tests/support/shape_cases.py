"""Small files of our own making in the shapes that people publish and export, each with what it says.

A judgement is written as ``prompt => better > worse``, ``= `` for a tie, ``+answer`` and ``-answer`` for thumbs; who
said it follows after ``@`` and the strength after ``~``.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewardloop_data.shapes.shape import Choices


@dataclass(frozen=True, slots=True)
class Case:
    """One shape: its rows or the bytes of its file, and what it says, or why it is refused.

    Attributes:
        shape: What people call it.
        rows: Its rows, as lines of JSON unless ``data`` is given.
        says: The judgements of all rows.
        refused: What the refusal must name; "" if the file is read without a flag.
        flags: The flags that settle it, in the command's words; "" if there are none.
        choices: The same flags.
        then: The judgements with these flags.
        rejected: Rows that are refused alone.
        name: Name of the file.
        data: Its bytes.
    """

    shape: str
    rows: Sequence[Any] = ()
    says: Sequence[str] = ()
    refused: str = ""
    flags: str = ""
    choices: Choices = field(default_factory=Choices)
    then: Sequence[str] = ()
    rejected: int = 0
    name: str = "rows.jsonl"
    data: bytes = b""

    @property
    def content(self) -> bytes:
        return self.data or jsonl(self.rows)


def jsonl(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
SAID = "user: q => good > bad"
_CHATML = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
_TABLE = b"prompt,chosen,rejected\r\nq,good,bad\r\n"
_TABBED = _TABLE.replace(b",", b"\t")


def _zipped(files: Mapping[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def _zstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(content)


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), made)
    return made.getvalue()


def _arena(winner: str, *, turns: int = 1, **more: Any) -> dict[str, Any]:
    talk = [user("q"), assistant("same")] * (turns - 1)
    row = {"question_id": "7", "model_a": "m1", "model_b": "m2", "winner": winner, "judge": "j1", "turn": turns}
    row |= {"conversation_a": [*talk, user("q"), assistant("one")]}
    row |= {"conversation_b": [*talk, user("q"), assistant("two")]}
    return {**row, "anony": True, "language": "English", "tstamp": 1.5, **more}


_TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
_CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
_TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": {
        "message_id": "1",
        "text": "q",
        "role": "prompter",
        "replies": [
            {
                "text": "worst",
                "role": "assistant",
                "rank": 2,
                "replies": [{"text": "and?", "role": "prompter", "replies": []}],
            },
            {
                "text": "best",
                "role": "assistant",
                "rank": 0,
                "replies": [
                    {
                        "text": "more",
                        "role": "prompter",
                        "replies": [
                            {"text": "long", "role": "assistant", "rank": 1, "replies": []},
                            {"text": "short", "role": "assistant", "rank": 0, "replies": []},
                        ],
                    }
                ],
            },
            {"text": "middle", "role": "assistant", "rank": 1, "replies": []},
            {"text": "gone", "role": "assistant", "rank": 3, "deleted": True, "replies": []},
        ],
    },
}

PAIRS = (
    Case("TRL explicit prompt", [PAIR], [SAID]),
    Case(
        "TRL explicit prompt, conversational",
        [{"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}],
        [SAID],
    ),
    Case(
        "TRL implicit prompt, conversational",
        [{"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]}],
        [SAID],
    ),
    Case(
        "TRL implicit prompt, text",
        [{"chosen": "The sky is blue.", "rejected": "The sky is green."}],
        refused="--format trl-implicit",
        flags="--format trl-implicit",
        choices=Choices("trl-implicit"),
        then=["user: The sky is =>  blue. >  green."],
    ),
    Case(
        "hh-rlhf",
        [
            {
                "chosen": "\n\nHuman: q\n\nAssistant: ok\n\nHuman: r\n\nAssistant: good",
                "rejected": "\n\nHuman: q\n\nAssistant: ok\n\nHuman: r\n\nAssistant: bad",
            },
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
        ],
        ["user: q | assistant: ok | user: r => good > bad"],
        rejected=1,
    ),
    Case(
        "hh-rlhf with a prompt beside the transcripts",
        [{"prompt": "q", "chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}],
        refused="--format hh-rlhf",
        flags="--format hh-rlhf",
        choices=Choices("hh-rlhf"),
        then=[SAID],
    ),
    Case(
        "hh-rlhf cut into a prompt transcript and answers",
        [{"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"}],
        refused="--format hh-rlhf",
        flags="--format hh-rlhf",
        choices=Choices("hh-rlhf"),
        then=["user: q =>  good >  bad"],
    ),
    Case(
        "ChatML transcripts",
        [
            {
                "chosen": f"{_CHATML}good<|im_end|>\n",
                "rejected": f"{_CHATML}bad<|im_end|>",
            }
        ],
        ["system: be kind | user: q => good > bad"],
    ),
    Case(
        "answers that end with a mark of ChatML",
        [{"prompt": "q", "chosen": "good<|im_end|>", "rejected": "bad<|im_end|>"}],
        refused="--verbatim",
        flags="--verbatim",
        choices=Choices(is_verbatim=True),
        then=["user: q => good<|im_end|> > bad<|im_end|>"],
    ),
    Case(
        "orca pairs",
        [
            {"system": "Answer only in French.", "question": "q", "chosen": "good", "rejected": "bad"},
            {"system": "", "question": "p", "chosen": "good", "rejected": "bad"},
        ],
        ["system: Answer only in French. | user: q => good > bad", "user: p => good > bad"],
    ),
    Case(
        "pairs with a system text",
        [{"system": "Answer only in French.", **PAIR}],
        ["system: Answer only in French. | user: q => good > bad"],
    ),
    Case(
        "Alpaca pairs",
        [
            {"instruction": "Add.", "input": "1 and 2", "chosen": "3", "rejected": "4"},
            {"instruction": "Now?", "input": "", "history": [["a", "b"]], "chosen": "3", "rejected": "4"},
        ],
        ["user: Add.\n1 and 2 => 3 > 4", "user: a | assistant: b | user: Now? => 3 > 4"],
    ),
    Case(
        "a pair with an input of unknown meaning",
        [{**PAIR, "input": "the text"}],
        refused="--ignore input",
        flags="--ignore input",
        choices=Choices(ignored=frozenset(("input",))),
        then=[SAID],
    ),
    Case(
        "ShareGPT pairs",
        [
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            }
        ],
        [SAID],
    ),
    Case(
        "UltraFeedback binarized",
        [
            {
                "prompt": "q",
                "prompt_id": "1",
                "score_chosen": 8.0,
                "score_rejected": 5.5,
                "messages": [system("be kind"), user("q"), assistant("good")],
                "chosen": [system("be kind"), user("q"), assistant("good")],
                "rejected": [system("be kind"), user("q"), assistant("bad")],
            }
        ],
        ["system: be kind | user: q => good > bad"],
    ),
    Case(
        "UltraFeedback with a system turn",
        [
            {
                "prompt": "q",
                "chosen": [system("be kind"), user("q"), assistant("good")],
                "rejected": [system("be kind"), user("q"), assistant("bad")],
            }
        ],
        ["system: be kind | user: q => good > bad"],
    ),
    Case(
        "distilabel",
        [
            {
                "prompt": "q",
                "chosen": [user("q"), assistant("good")],
                "rejected": [user("q"), assistant("bad")],
                "generations": ["good", "bad"],
                "ratings": [5, 1],
                "chosen_rating": 5.0,
                "rejected_rating": 1.0,
            }
        ],
        [SAID],
    ),
    Case(
        "RLHFlow",
        [
            {
                "chosen": [user("q"), assistant("good")],
                "rejected": [user("q"), assistant("bad")],
                "chosen_score": 4.0,
                "rejected_score": 1.0,
            }
        ],
        [SAID],
    ),
    Case(
        "OpenAI preferences",
        [
            {
                "input": {"messages": [system("s"), user("q")], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [assistant("good")],
                "non_preferred_output": [assistant("bad")],
            }
        ],
        ["system: s | user: q => good > bad"],
    ),
    Case(
        "content parts",
        [
            {
                "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
                "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "good"}]}],
                "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "bad"}]}],
            }
        ],
        [SAID],
    ),
    Case(
        "content parts with an image",
        [{**PAIR, "prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}],
        refused="models read text only",
    ),
    Case(
        "tool turns",
        [
            {
                "tools": _TOOLS,
                "chosen": "good",
                "rejected": "bad",
                "prompt": [user("q"), _CALL, {"role": "tool", "name": "look", "content": "4"}],
            }
        ],
        [f"tools: {json.dumps(_TOOLS)} | user: q | assistant:  | tool: 4 => good > bad"],
    ),
    Case(
        "a developer turn",
        [{**PAIR, "prompt": [{"role": "developer", "content": "d"}, user("q")]}],
        ["developer: d | user: q => good > bad"],
    ),
    Case("an empty system turn", [{**PAIR, "prompt": [system(""), user("q")]}], [SAID]),
    Case(
        "a system turn within the conversation",
        [{**PAIR, "prompt": [user("a"), assistant("b"), system("s"), user("q")]}],
        refused="a system turn that is not the first",
    ),
    Case("a tie beside chosen and rejected", [{**PAIR, "tie": True}], refused="tie: is True beside a preference"),
    Case(
        "scores that contradict the choice",
        [{**PAIR, "chosen_score": 1, "rejected_score": 2}],
        refused="the scores contradict the choice",
    ),
    Case(
        "annotators as numbers of pandas",
        [{**PAIR, "annotator": 3.0}, {**PAIR, "annotator": "x"}],
        [f"{SAID} @3", f"{SAID} @x"],
    ),
)

COMPARISONS = (
    Case(
        "chosen index, from 0",
        [{"prompt": "q", "responses": ["a", "b"], "chosen": 0}, {"prompt": "p", "responses": ["a", "b"], "chosen": 1}],
        ["user: q => a > b", "user: p => b > a"],
    ),
    Case(
        "chosen index, from 0 or 1",
        [{"prompt": "q", "responses": ["good", "bad"], "chosen": 1}],
        refused="--one-based or --zero-based",
        flags="--one-based",
        choices=Choices(indices="one-based"),
        then=["user: q => good > bad"],
    ),
    Case(
        "chosen index, from 1",
        [{"prompt": "q", "responses": ["a", "b"], "chosen": i} for i in (1, 2)],
        refused="--one-based or --zero-based",
        flags="--one-based",
        choices=Choices(indices="one-based"),
        then=["user: q => a > b", "user: q => b > a"],
    ),
    Case(
        "a ranking that is an order or ranks",
        [{"prompt": "q", "responses": ["a", "b", "c"], "ranking": [2, 0, 1]}],
        refused="--ranks",
        flags="--ranks",
        choices=Choices(rankings="ranks"),
        then=["user: q => b > c > a"],
    ),
    Case(
        "a ranking that is an order or ranks, the best first",
        [{"prompt": "q", "responses": ["a", "b", "c"], "ranking": [2, 0, 1]}],
        refused="--best-first",
        flags="--best-first",
        choices=Choices(rankings="order"),
        then=["user: q => c > a > b"],
    ),
    Case(
        "ranks with a tie",
        [{"prompt": "q", "responses": ["a", "b", "c"], "ranking": [1, 1, 2]}],
        refused="--ranks",
        flags="--ranks",
        choices=Choices(rankings="ranks"),
        then=["user: q => a = b", "user: q => a > c", "user: q => b > c"],
    ),
    Case(
        "a ranking with ranks beside it",
        [{"prompt": "q", "responses": ["a", "b", "c"], "ranking": [1, 2, 0], "ranks": [2, 0, 1]}],
        ["user: q => b > c > a"],
    ),
    Case(
        "annotations of several people",
        [
            {
                "prompt": "q",
                "responses": ["a", "b"],
                "annotations": [{"annotator": "x", "choice": 0}, {"choice": "tie"}, {"choice": 1}, {"choice": 1}],
            }
        ],
        ["user: q => a > b @x", "user: q => a = b", "user: q => b > a", "user: q => b > a"],
    ),
    Case(
        "HelpSteer2 preferences",
        [
            {
                "split": "train",
                "prompt": "q",
                "response_1": "a",
                "response_2": "b",
                "preference_strength": -3,
                "preference_statement": "s",
                "preference_elaboration": "e",
            }
        ],
        ["user: q => a > b ~1.00"],
    ),
    Case(
        "HelpSteer3",
        [
            {
                "domain": "general",
                "language": "english",
                "context": [user("q")],
                "response1": "a",
                "response2": "b",
                "overall_preference": 1,
                "individual_preference": [{"score": 1}],
            }
        ],
        ["user: q => b > a ~0.33"],
    ),
    Case(
        "HelpSteer ratings of aspects",
        [
            {
                "prompt": "q",
                "response": "a",
                "helpfulness": 3,
                "correctness": 4,
                "coherence": 4,
                "complexity": 1,
                "verbosity": 2,
            }
        ],
        refused="--column rating=helpfulness --scale 0..4",
        flags="--column rating=helpfulness --scale 0..4 --ignore correctness,coherence,complexity,verbosity",
        choices=Choices(
            columns={"rating": "helpfulness"},
            scale=(0, 4),
            ignored=frozenset(("correctness", "coherence", "complexity", "verbosity")),
        ),
        then=["user: q => a: 3 in 0..4"],
    ),
    Case(
        "UltraFeedback original",
        [
            {
                "source": "evol",
                "instruction": "q",
                "models": ["m"],
                "correct_answers": ["None"],
                "completions": [
                    {"response": "a", "overall_score": 6.0, "annotations": {"helpfulness": {"Rating": "2"}}},
                    {"response": "b", "overall_score": 8.0, "annotations": {"helpfulness": {"Rating": "5"}}},
                    {"response": "c", "overall_score": 7.0, "annotations": {"helpfulness": {"Rating": "2"}}},
                ],
            }
        ],
        refused="--column score=",
        flags="--column score=annotations.helpfulness.Rating",
        choices=Choices(columns={"score": "annotations.helpfulness.Rating"}),
        then=["user: q => b > a", "user: q => a = c", "user: q => b > c"],
    ),
    Case(
        "Nectar",
        [
            {
                "prompt": "\n\nHuman: q\n\nAssistant: ",
                "num_responses": 3,
                "turns": 1,
                "good_natured": True,
                "answers": [
                    {"answer": "b", "model": "m", "rank": 2.0},
                    {"answer": "a", "model": "n", "rank": 1.0},
                    {"answer": "c", "model": "o", "rank": 3.0},
                ],
            }
        ],
        ["user: q => a > b > c"],
    ),
    Case(
        "SHP",
        [
            {
                "post_id": "p",
                "history": "q",
                "human_ref_A": "a",
                "human_ref_B": "b",
                "labels": 0,
                "score_A": 2,
                "score_B": 9,
                "score_ratio": 4.5,
                "domain": "x",
                "seconds_difference": 3.0,
            },
            {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 2, "score_B": 9},
        ],
        ["user: q => b > a"],
        rejected=1,
    ),
    Case(
        "webgpt comparisons",
        [
            {
                "question": {"id": "1", "full_text": "q"},
                "answer_0": "a",
                "answer_1": "b",
                "score_0": -0.5,
                "score_1": 0.5,
                "quotes_0": {},
                "quotes_1": {},
                "tokens_0": {},
                "tokens_1": {},
            },
            {"question": {"full_text": "q"}, "answer_0": "a", "answer_1": "b", "score_0": 0.0, "score_1": 0.0},
        ],
        ["user: q => b > a ~0.50", "user: q => a = b"],
    ),
    Case(
        "summarize-from-feedback",
        [
            {
                "info": {"id": "1", "post": "long", "title": "t", "subreddit": "r"},
                "summaries": [{"text": "a", "policy": "x"}, {"text": "b", "policy": "y"}],
                "choice": 1,
                "worker": "w",
                "batch": "1",
                "split": "train",
                "extra": {},
            }
        ],
        ["user: SUBREDDIT: r/r\n\nTITLE: t\n\nPOST: long\n\nTL;DR: => b > a @w"],
    ),
    Case(
        "Chatbot Arena",
        [_arena("model_b"), _arena("tie"), _arena("tie (bothbad)", judge="j2"), _arena("model_a", turns=2)],
        [
            *("user: q => two > one @j1", "user: q => one = two @j1", "user: q => one = two @j2"),
            "user: q | assistant: same | user: q => one > two @j1",
        ],
    ),
    Case(
        "MT-bench human judgements",
        [
            {
                "question_id": 81,
                "model_a": "m",
                "model_b": "n",
                "winner": "model_a",
                "judge": "e",
                "turn": 1,
                "conversation_a": [user("q"), assistant("a"), user("then?"), assistant("c")],
                "conversation_b": [user("q"), assistant("b"), user("then?"), assistant("d")],
            },
            {
                "question_id": 81,
                "model_a": "m",
                "model_b": "n",
                "winner": "model_a",
                "judge": "e",
                "turn": 2,
                "conversation_a": [user("q"), assistant("a"), user("then?"), assistant("c")],
                "conversation_b": [user("q"), assistant("b"), user("then?"), assistant("d")],
            },
        ],
        ["user: q => a > b @e"],
        rejected=1,
    ),
    Case(
        "arena table (CSV with lists)",
        name="train.csv",
        data=(
            b"id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
            b'1,m,n,"[""q""]","[""a""]","[""b""]",0,1,0\n2,m,n,"[""q""]","[""a""]","[""b""]",0,0,1\n'
        ),
        says=["user: q => b > a", "user: q => a = b"],
    ),
    Case(
        "PKU-SafeRLHF",
        [
            {
                "prompt": "q",
                "response_0": "a",
                "response_1": "b",
                "better_response_id": 0,
                "safer_response_id": 1,
                "is_response_0_safe": False,
                "is_response_1_safe": True,
            }
        ],
        refused="--column chosen=better_response_id",
        flags="--column chosen=safer_response_id",
        choices=Choices(columns={"chosen": "safer_response_id"}),
        then=["user: q => b > a"],
    ),
    Case(
        "oasst trees",
        [_TREE],
        ["user: q => best > middle > worst", "user: q | assistant: best | user: more => short > long"],
    ),
    Case(
        "oasst messages",
        [{"message_id": "1", "parent_id": None, "text": "q", "role": "prompter", "rank": None}],
        refused="take the file of trees",
    ),
    Case(
        "PRM800K",
        [{"labeler": "x", "question": {"problem": "p"}, "label": {"steps": []}, "timestamp": "t"}],
        refused="it judges steps",
    ),
    Case(
        "TRL stepwise supervision",
        [{"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}],
        refused="it judges steps",
    ),
    Case(
        "Argilla",
        [
            {
                "id": "1",
                "status": "completed",
                "fields": {"prompt": "q", "one": "a", "two": "b"},
                "responses": {"better": [{"value": "two", "user_id": "u"}, {"value": "tie", "user_id": "v"}]},
                "metadata": {},
                "suggestions": {},
                "vectors": {},
            }
        ],
        refused="--column winner=responses.",
        flags=(
            "--column prompt=fields.prompt --column response_a=fields.one --column response_b=fields.two --column "
            "winner=responses.better.*.value --column annotator=responses.better.*.user_id --ignore '*'"
        ),
        choices=Choices(
            columns={
                "prompt": "fields.prompt",
                "response_a": "fields.one",
                "response_b": "fields.two",
                "winner": "responses.better.*.value",
                "annotator": "responses.better.*.user_id",
            },
            ignored=frozenset("*"),
        ),
        then=["user: q => b > a @u", "user: q => a = b @v"],
    ),
    Case(
        "Label Studio",
        [
            {
                "id": 1,
                "data": {"prompt": "q", "answer1": "a", "answer2": "b"},
                "project": 1,
                "annotations": [
                    {"completed_by": 5, "result": [{"type": "pairwise", "value": {"selected": "right"}}]},
                    {"completed_by": 6, "result": [{"type": "pairwise", "value": {"selected": "left"}}]},
                ],
            }
        ],
        refused="--column prompt=data.prompt",
        flags=(
            "--column prompt=data.prompt --column response_a=data.answer1 --column response_b=data.answer2 --column "
            "winner=annotations.*.result.0.value.selected --column annotator=annotations.*.completed_by --ignore '*'"
        ),
        choices=Choices(
            columns={
                "prompt": "data.prompt",
                "response_a": "data.answer1",
                "response_b": "data.answer2",
                "winner": "annotations.*.result.0.value.selected",
                "annotator": "annotations.*.completed_by",
            },
            ignored=frozenset("*"),
        ),
        then=["user: q => b > a @5", "user: q => a > b @6"],
    ),
)

SINGLE = (
    Case(
        "KTO",
        [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": False}],
        ["user: q => +a", "user: q => -b"],
    ),
    Case(
        "edits",
        [{"prompt": "q", "response": "a", "edited_text": "b"}],
        ["user: q => a ~ b"],
    ),
    Case(
        "KTO, labels 1 and 0, messages",
        [
            {"prompt": [user("q")], "completion": [assistant("a")], "label": 1},
            {"prompt": [user("q")], "completion": [assistant("b")], "label": 0},
        ],
        ["user: q => +a", "user: q => -b"],
    ),
    Case(
        "labels 1 and -1",
        [{"prompt": "q", "completion": "a", "label": 1}, {"prompt": "q", "completion": "b", "label": -1}],
        refused="--format signed-labels",
        flags="--format signed-labels",
        choices=Choices("signed-labels"),
        then=["user: q => +a", "user: q => -b"],
    ),
    Case(
        "up: true and false",
        [{"prompt": "q", "response": "a", "up": True}, {"prompt": "q", "response": "b", "up": False}],
        ["user: q => +a", "user: q => -b"],
    ),
    Case(
        "up: 1 and 0",
        [{"prompt": "q", "response": "a", "up": 1}, {"prompt": "q", "response": "b", "up": 0}],
        refused="--format thumbs",
        flags="--format thumbs",
        choices=Choices("thumbs"),
        then=["user: q => +a", "user: q => -b"],
    ),
    Case(
        "votes up and down",
        [{"prompt": "q", "response": "a", "up": 2, "down": 1}],
        ["user: q => +a", "user: q => +a", "user: q => -a"],
    ),
    Case(
        "ratings",
        [{"prompt": "q", "response": "a", "rating": 4}],
        refused="--scale",
        flags="--scale 1..5",
        choices=Choices(scale=(1, 5)),
        then=["user: q => a: 4 in 1..5"],
    ),
    Case(
        "Langfuse traces",
        [
            {
                "id": "1",
                "input": {"messages": [user("q")]},
                "output": {"role": "assistant", "content": "a"},
                "scores": [{"name": "user-feedback", "value": 1}, {"name": "toxicity", "value": 0.1}],
            }
        ],
        refused="--column label=scores.[name=user-feedback].value",
        flags=(
            "--column prompt=input.messages --column completion=output.content --column "
            "label=scores.[name=user-feedback].value --ignore '*'"
        ),
        choices=Choices(
            columns={
                "prompt": "input.messages",
                "completion": "output.content",
                "label": "scores.[name=user-feedback].value",
            },
            ignored=frozenset("*"),
        ),
        then=["user: q => +a"],
    ),
    Case(
        "LangSmith runs",
        [
            {
                "id": "1",
                "inputs": {"question": "q"},
                "outputs": {"answer": "a"},
                "feedback": [{"key": "user_score", "score": 0}],
            }
        ],
        refused="--column label=feedback.[key=user_score].score",
        flags=(
            "--column prompt=inputs.question --column completion=outputs.answer --column "
            "label=feedback.[key=user_score].score --ignore '*'"
        ),
        choices=Choices(
            columns={
                "prompt": "inputs.question",
                "completion": "outputs.answer",
                "label": "feedback.[key=user_score].score",
            },
            ignored=frozenset("*"),
        ),
        then=["user: q => -a"],
    ),
    Case(
        "ShareGPT",
        [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}],
        refused="rewardloop sft",
    ),
    Case("Alpaca", [{"instruction": "q", "input": "", "output": "a"}], refused="rewardloop sft"),
    Case("TRL prompt and completion", [{"prompt": "q", "completion": "a"}], refused="rewardloop sft"),
    Case("messages", [{"messages": [user("q"), assistant("a")]}], refused="rewardloop sft"),
    Case("one object around all rows", [{"data": [PAIR, PAIR]}], refused="jq"),
    Case(
        "two shapes in one file",
        [{"question": "q", "chosen": "a", "rejected": "b"}, {"instruction": "q", "chosen": "a", "rejected": "b"}],
        refused="--format",
        flags="--format orca-pairs",
        choices=Choices("orca-pairs"),
        then=["user: q => a > b"],
    ),
    Case(
        "a column under another name",
        [{"query": "q", "chosen": "good", "rejected": "bad"}],
        refused="--column prompt=KEY",
        flags="--column prompt=query",
        choices=Choices(columns={"prompt": "query"}),
        then=[SAID],
    ),
)

FILES = (
    Case(
        "JSON lines with a byte order mark and CRLF",
        data=b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r\n",
        says=[SAID],
    ),
    Case("a JSON array", name="rows.json", data=json.dumps([PAIR, PAIR], indent=2).encode(), says=[SAID, SAID]),
    Case("CSV", name="rows.csv", data=_TABLE, says=[SAID]),
    Case(
        "CSV with lines and quotes in its cells",
        name="rows.csv",
        data=b'prompt,chosen,rejected,annotator\n"q, ""two""\nlines",good,bad,7\n',
        says=['user: q, "two"\nlines => good > bad @7'],
    ),
    Case(
        "CSV of labels",
        name="rows.csv",
        data=b"prompt,completion,label\nq,42,True\nq,b,False\n",
        says=["user: q => +42", "user: q => -b"],
    ),
    Case(
        "a CSV row with too many cells",
        name="rows.csv",
        data=_TABLE + b"q,good,bad,more\n",
        says=[SAID],
        rejected=1,
    ),
    Case("TSV", name="rows.tsv", data=_TABBED, says=[SAID]),
    Case("a table without a telling name", name="rows", data=_TABLE, says=[SAID]),
    Case("UTF-16 with a mark", data=json.dumps(PAIR).encode("utf-16"), says=[SAID]),
    Case("UTF-16 without a mark", data=(json.dumps(PAIR) + "\n").encode("utf-16-le"), says=[SAID]),
    Case(
        "CSV of Excel in UTF-16",
        name="rows.tsv",
        data=_TABBED.decode().encode("utf-16"),
        says=[SAID],
    ),
    Case("gzip", name="rows.jsonl.gz", data=gzip.compress(jsonl([PAIR])), says=[SAID]),
    Case("zstd", name="rows.jsonl.zst", data=_zstd(jsonl([PAIR])) + _zstd(jsonl([PAIR])), says=[SAID, SAID]),
    Case("bzip2", name="rows.jsonl.bz2", data=bz2.compress(jsonl([PAIR])), says=[SAID]),
    Case("xz", name="rows.jsonl.xz", data=lzma.compress(jsonl([PAIR])), says=[SAID]),
    Case("a packed CSV file", name="rows.csv.gz", data=gzip.compress(_TABLE), says=[SAID]),
    Case("zip", name="rows.zip", data=_zipped({"rows.csv": _TABLE}), says=[SAID]),
    Case("zip, stored", name="rows.zip", data=_zipped({"a.jsonl": jsonl([PAIR])}, zipfile.ZIP_STORED), says=[SAID]),
    Case(
        "zip of several files",
        name="rows.zip",
        data=_zipped({"a.csv": _TABLE, "b.csv": _TABLE}),
        refused="holds 2 files",
    ),
    Case("Parquet", name="rows.parquet", data=_parquet([PAIR]), says=[SAID]),
    Case(
        "Parquet with columns that are no JSON",
        name="rows.parquet",
        data=_parquet([{**PAIR, "created_at": __import__("datetime").datetime(2026, 1, 1), "hash": b"\xff"}]),
        says=[SAID],
    ),
)

CASES = (*PAIRS, *COMPARISONS, *SINGLE, *FILES)
