"""Shapes that are known and not read as they are, each with what to do about it."""

from __future__ import annotations

from rewardloop_data.shapes.shape import Row, Shape

_SFT = (
    "holds conversations and no judgement of them: 'rewardloop sft' learns from it, and 'rewardloop judge' lets a "
    "judge compare answers to its prompts"
)


def _no_pair(row: Row) -> bool:
    return not {"chosen", "rejected", "label", "rating", "winner", "responses"} & row.keys()


SHAPES = (
    Shape(
        "helpsteer",
        "{prompt, response, helpfulness, correctness, coherence, complexity, verbosity}",
        "nothing by itself: it rates five aspects",
        ("prompt", "response", "helpfulness", "correctness"),
        fits=lambda row: "rating" not in row,
        way=(
            "it rates several aspects: say --column rating=helpfulness --scale 0..4 --ignore "
            "correctness,coherence,complexity,verbosity, and import it again with --aspect for each other aspect"
        ),
    ),
    Shape(
        "prm800k",
        "{question, label: {steps}}",
        "nothing: it judges the steps of an answer",
        ("question", "label"),
        fits=lambda row: isinstance(row["label"], dict),
        way=(
            "it judges steps, and a signal judges a whole answer: write a row {prompt, completion, label} of each "
            "finished solution, with label true if its answer is question.ground_truth_answer"
        ),
    ),
    Shape(
        "stepwise",
        "{prompt, completions: [..], labels: [..]}",
        "nothing: it judges the steps of an answer",
        ("prompt", "completions", "labels"),
        way=(
            "it judges steps, and a signal judges a whole answer: write a row {prompt, completion, label} with the "
            "steps joined, and label true if all of them are right"
        ),
    ),
    Shape(
        "oasst-messages",
        "{message_id, parent_id, text, role, rank}",
        "nothing: each row is one message of a tree",
        ("message_id", "text", "role"),
        way=(
            "each row is one message, and a ranking needs its siblings: take the file of trees (with prompt.replies) "
            "of the same data set"
        ),
    ),
    Shape(
        "sharegpt",
        "{conversations: [{from, value}]}",
        "nothing: there is no judgement",
        ("conversations",),
        fits=_no_pair,
        way=_SFT,
    ),
    Shape(
        "messages",
        "{messages: [{role, content}]}",
        "nothing: there is no judgement",
        ("messages",),
        fits=_no_pair,
        way=_SFT,
    ),
    Shape(
        "alpaca",
        "{instruction, input, output}",
        "nothing: there is no judgement",
        ("instruction", "output"),
        fits=_no_pair,
        way=_SFT,
    ),
    Shape(
        "prompt-completion",
        "{prompt, completion}",
        "nothing: there is no judgement",
        ("prompt", "completion"),
        fits=_no_pair,
        way=_SFT,
    ),
    Shape(
        "argilla",
        "{fields: {..}, responses: {..}}",
        "a choice, if --column says where its parts are",
        ("fields", "responses"),
        way=(
            "it is an Argilla record, whose fields and questions have names of their own: say where they are, such as "
            "--column prompt=fields.prompt --column response_a=fields.first --column response_b=fields.second --column "
            "winner=responses.preference.*.value --column annotator=responses.preference.*.user_id --ignore '*'; a "
            "winner is a, b, both, or the name of the field"
        ),
    ),
    Shape(
        "label-studio",
        "{data: {..}, annotations: [{completed_by, result: [..]}]}",
        "a choice, if --column says where its parts are",
        ("data", "annotations"),
        way=(
            "it is a Label Studio task, whose fields have names of their own: say where they are, such as --column "
            "prompt=data.prompt --column response_a=data.answer1 --column response_b=data.answer2 --column "
            "winner=annotations.*.result.0.value.selected --column annotator=annotations.*.completed_by --ignore '*'; "
            "the left answer is response_a"
        ),
    ),
    Shape(
        "langfuse",
        "{input, output, scores: [{name, value}]}",
        "a thumb or a rating, if --column says by which score",
        ("input", "output", "scores"),
        way=(
            "it is a Langfuse trace: say what is what, such as --column prompt=input.messages --column "
            "completion=output.content --column label=scores.[name=user-feedback].value --ignore '*'; with --column "
            "rating= and --scale for a score that is no thumb"
        ),
    ),
    Shape(
        "langsmith",
        "{inputs, outputs, feedback: [{key, score}]}",
        "a thumb or a rating, if --column says by which feedback",
        ("inputs", "outputs"),
        way=(
            "it is a LangSmith run: say what is what, such as --column prompt=inputs.question --column "
            "completion=outputs.answer --column label=feedback.[key=user_score].score --ignore '*'"
        ),
    ),
    Shape(
        "wrapped",
        "{data: [..]}, one object around all rows",
        "nothing: its rows are within",
        ("data",),
        fits=lambda row: isinstance(row["data"], list) and bool(row["data"]) and isinstance(row["data"][0], dict),
        way="its rows are in the list 'data': write that list alone, such as with jq -c '.data[]'",
    ),
)
