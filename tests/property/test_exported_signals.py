"""What is exported from the ledger and imported again gives the same signals, in every container and shape."""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewardloop.formats.messages import ToolCall, Turn, conversation_prompt, tools_of, turns
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_data.judgements import Labels, event_of
from rewardloop_data.recognise import recognise
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile
from rewardloop_data.target_file import UnwritableFile, writing
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.commands.feedback_export.command import main

KINDS = ("choice", "ranking", "thumb", "rating", "edit", "tie")
WHOLE = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".json.bz2", ".jsonl.xz")
TABLES = (".csv", ".csv.gz", ".parquet")

# Texts that break careless writers of tables and of JSON: quotes, commas, line ends, marks, and other scripts.
TEXTS = st.text(
    st.sampled_from("ab ,;\"'\n\r\t\\{}[]<|>#\u00e9\u4e2d\u0627\U0001f600\u2028") | st.characters(codec="utf-8"),
    min_size=1,
    max_size=30,
).filter(lambda text: bool(text.strip()))
IDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)


@st.composite
def prompts(draw: st.DrawFn, *, with_tools: bool) -> common_pb2.Prompt:
    if draw(st.booleans()):
        return common_pb2.Prompt(text=draw(TEXTS))
    said = [Turn("system", draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        said += [Turn("user", draw(TEXTS)), Turn("assistant", draw(TEXTS))]
    if with_tools and draw(st.booleans()):
        call = ToolCall("look", json.dumps({"where": draw(TEXTS)}, ensure_ascii=False), "c1")
        said = [Turn("tools", '[{"type":"function","function":{"name":"look"}}]'), *said]
        said += [Turn("user", draw(TEXTS)), Turn("assistant", "", (call,)), Turn("tool", draw(TEXTS), (), "look", "c1")]
    else:
        said.append(Turn("user", draw(TEXTS)))
    return conversation_prompt(said)


@st.composite
def events(draw: st.DrawFn, kinds: Sequence[str] = KINDS, *, with_tools: bool = True) -> feedback_pb2.FeedbackEvent:
    texts = draw(st.lists(TEXTS, min_size=2, max_size=4, unique=True))
    event = feedback_pb2.FeedbackEvent(
        event_id=draw(IDS),
        prompt=draw(prompts(with_tools=with_tools)),
        responses=texts,
        annotator_id=draw(st.just("") | IDS),
        aspect=draw(st.sampled_from(("", "harmless"))),
        source=draw(st.sampled_from((1, 2, 3))),
    )
    one, other = draw(st.permutations(range(len(texts))))[:2]
    match draw(st.sampled_from(kinds)):
        case "choice":
            strength = draw(st.none() | st.floats(0.001, 1))
            event.choice.CopyFrom(feedback_pb2.Choice(chosen=one, rejected=other, strength=strength))
        case "tie":
            event.tie.CopyFrom(feedback_pb2.Tie(first=one, second=other))
        case "ranking":
            event.ranking.order.extend(draw(st.permutations(range(len(texts)))))
        case "thumb":
            event.thumb.CopyFrom(feedback_pb2.Thumb(response=one, up=draw(st.booleans())))
        case "rating":
            low, high = draw(st.sampled_from(((1, 5), (-1.5, 2.25))))
            event.rating.CopyFrom(
                feedback_pb2.Rating(response=one, value=draw(st.floats(low, high)), minimum=low, maximum=high)
            )
        case _:
            text = draw(TEXTS.filter(lambda text: text != texts[one]))
            event.edit.CopyFrom(feedback_pb2.Edit(response=one, edited_text=text))
    event.tags["app"] = draw(st.sampled_from(("web", "phone")))
    return event


def several(**options: Any) -> st.SearchStrategy[list[feedback_pb2.FeedbackEvent]]:
    return st.lists(events(**options), min_size=1, max_size=8, unique_by=lambda event: event.event_id)


def meaning(event: feedback_pb2.FeedbackEvent, *, with_people: bool = True) -> str:
    """What a signal says, whatever else was shown beside what it judges."""
    texts = list(event.responses)
    kind = str(event.WhichOneof("signal"))
    signal = getattr(event, kind)
    match kind:
        case "choice":
            said: Any = [texts[signal.chosen], texts[signal.rejected], signal.strength]
        case "tie":
            said = sorted((texts[signal.first], texts[signal.second]))
        case "ranking":
            said = [texts[i] for i in signal.order]
        case "thumb":
            said = [texts[signal.response], signal.up]
        case "rating":
            # Added to 0, -0.0 is 0.0, as a table writes it.
            said = [texts[signal.response], signal.value + 0.0, signal.minimum + 0.0, signal.maximum + 0.0]
        case _:
            said = [texts[signal.response], signal.edited_text]
    who = [event.annotator_id, event.aspect] if with_people else []
    tools, turns_ = tools_of(turns(event.prompt))  # how the JSON of tools is spelled does not matter
    return repr((kind, tools, turns_, said, who))


def exported(
    signals: Sequence[feedback_pb2.FeedbackEvent], ending: str, *flags: str
) -> list[feedback_pb2.FeedbackEvent]:
    """Write signals into a ledger, export them, and read what an import would record."""
    with tempfile.TemporaryDirectory() as folder:
        ledger, out = Ledger(Path(folder) / "ledger"), Path(folder) / f"rows{ending}"
        rows = []
        for place, event in enumerate(signals, start=1):
            event.arrival_time.FromMilliseconds(1_700_000_000_000 + place)
            rows.append(Recorded(f"{place}-0", event))
        ledger.append(rows)
        assert main(["--archive", str(Path(folder) / "ledger"), "--out", str(out), *flags]) == 0
        source = replace(SourceFile.of(out), is_guarded="--csv-safe" in flags)
        reading = recognise(out.name, source.lines(), Choices(is_verbatim=True))
        said = [each for line in source.lines() for each in reading.judgements(line.value())]
        return [event_of(each, Labels()) for each in said]


def same(signals: Sequence[feedback_pb2.FeedbackEvent], ending: str, *flags: str, with_people: bool = True) -> None:
    found = exported(signals, ending, *flags)
    assert Counter(meaning(each, with_people=with_people) for each in found) == Counter(
        meaning(each, with_people=with_people) for each in signals
    )
    if with_people:
        assert len({each.event_id for each in found}) == len(signals)


bounded: Callable[..., Any] = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("ending", WHOLE)
@bounded
@given(signals=several())
def test_signals_of_all_kinds_come_back_from_rows(ending: str, signals: list[feedback_pb2.FeedbackEvent]) -> None:
    same(signals, ending)


@pytest.mark.parametrize("ending", TABLES)
@pytest.mark.parametrize("kind", KINDS)
@bounded
@given(data=st.data())
def test_signals_of_one_kind_come_back_from_tables(ending: str, kind: str, data: st.DataObject) -> None:
    same(data.draw(several(kinds=[kind], with_tools=ending != ".parquet")), ending, "--kind", kind)


@pytest.mark.parametrize("ending", [".jsonl", *TABLES])
@pytest.mark.parametrize(
    ("shape", "kind"), [("trl-preference", "choice"), ("trl-kto", "thumb"), ("rankings", "ranking")]
)
@bounded
@given(data=st.data())
def test_signals_come_back_from_the_shapes_of_trl(ending: str, shape: str, kind: str, data: st.DataObject) -> None:
    signals = data.draw(several(kinds=[kind], with_tools=ending != ".parquet"))
    for each in signals:
        each.choice.ClearField("strength") if kind == "choice" else None  # TRL has no place for it
    same(signals, ending, "--shape", shape, "--about")
    same(signals, ending, "--shape", shape, with_people=False)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@bounded
@given(data=st.data())
def test_plain_rows_hold_texts(ending: str, data: st.DataObject) -> None:
    signals = data.draw(several(kinds=["choice"], with_tools=False))
    for each in signals:
        each.prompt.CopyFrom(common_pb2.Prompt(text=data.draw(TEXTS)))
        each.choice.ClearField("strength")
    same(signals, ending, "--shape", "trl-preference", "--form", "plain", with_people=False)


@pytest.mark.parametrize("beginning", ["=", "+", "-", "@", "'", "''", "\t", "\uff1d", "a"])
@bounded
@given(signals=several(kinds=("edit",)))
def test_texts_that_a_spreadsheet_would_run_come_back_from_a_guarded_table(
    beginning: str, signals: list[feedback_pb2.FeedbackEvent]
) -> None:
    for event in signals:
        event.responses[:] = [beginning + text for text in event.responses]
        event.edit.edited_text = beginning + event.edit.edited_text
        event.annotator_id = beginning + event.annotator_id
    edits = [event for event in signals if event.edit.edited_text != event.responses[event.edit.response]]
    same(edits, ".csv", "--kind", "edit", "--csv-safe")


def test_a_spreadsheet_finds_no_formula_in_a_guarded_table(tmp_path: Path) -> None:
    event = feedback_pb2.FeedbackEvent(event_id="e", prompt=common_pb2.Prompt(text="=1+1"), responses=["@a", "-2"])
    event.edit.CopyFrom(feedback_pb2.Edit(response=0, edited_text="+b"))
    Ledger(tmp_path / "ledger").append([Recorded("1-0", event)])
    archive = ("--archive", str(tmp_path / "ledger"), "--kind", "edit")
    assert main([*archive, "--out", str(tmp_path / "safe.csv"), "--csv-safe"]) == 0
    assert main([*archive, "--out", str(tmp_path / "plain.csv")]) == 0
    (safe,) = csv.DictReader((tmp_path / "safe.csv").read_text().splitlines())
    (plain,) = csv.DictReader((tmp_path / "plain.csv").read_text().splitlines())
    assert (safe["response"], safe["edited_text"]) == ("'@a", "'+b")
    assert (plain["response"], plain["edited_text"]) == ("@a", "+b")
    assert not [cell for cell in safe.values() if cell.startswith(("=", "+", "-", "@"))]
    assert main([*archive, "--out", str(tmp_path / "x.jsonl"), "--csv-safe"]) == 2


def test_two_exports_to_one_file_do_not_mix_and_the_later_one_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"

    def late() -> None:
        with writing(str(out), {}) as writer:
            writer.write({"by": "the later one"})
            with writing(str(out), {}) as first:
                first.write({"by": "the first one"})

    with pytest.raises(UnwritableFile, match="exists already"):
        late()
    assert json.loads(out.read_text()) == {"by": "the first one"}
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
