"""The ledger on a real disk: nothing lost, nothing twice, also when a step is cut short."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.signals import choice

from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2
from rewardloop_trainer.archive import segment_files
from rewardloop_trainer.archive.ledger import CorruptSegment, Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded


def rows(first: int, last: int) -> list[Recorded]:
    return [Recorded(f"{1000 + i}-0", choice(i)) for i in range(first, last)]


def ids(ledger: Ledger) -> list[str]:
    return [row.event.event_id for row in ledger.scan()]


def every_kind() -> list[feedback_pb2.FeedbackEvent]:
    about = {
        "prompt": common_pb2.Prompt(text="q"),
        "responses": ["a", "b", "c"],
        "source": feedback_pb2.SOURCE_IMPLICIT,
    }
    signals: list[dict[str, object]] = [
        {"choice": feedback_pb2.Choice(chosen=0, rejected=0)},
        {"ranking": feedback_pb2.Ranking(order=[2, 0, 1])},
        {"thumb": feedback_pb2.Thumb(response=0, up=False)},
        {"rating": feedback_pb2.Rating(response=2, value=3.5, minimum=-1, maximum=5)},
        {"edit": feedback_pb2.Edit(response=1, edited_text="\u00fc\U0001f600 better")},
        {"tie": feedback_pb2.Tie(first=0, second=2)},
        {"choice": feedback_pb2.Choice(chosen=1, rejected=0, strength=0.5)},
    ]
    events = [
        feedback_pb2.FeedbackEvent(event_id=f"k{i}", **about, **signal)  # type: ignore[arg-type]
        for i, signal in enumerate(signals)
    ]
    system = common_pb2.Message(role="system", content="be kind")
    user = common_pb2.Message(role="user", content="hello")
    events[1].prompt.conversation.messages.extend([system, user])
    events[2].tags.update({"locale": "de", "surface": "web"})
    events[3].annotator_id = "ann"
    events[3].aspect = "harmless"
    events[4].generation_id = "g1"
    events[4].policy_version.version = "3"
    events[4].policy_version.digest = "abc"
    events[0].response_versions.extend(["3", "4", "3"])
    events[5].event_time.FromMicroseconds(1_600_000_000_123_456)
    events[0].display_order.extend([2, 0, 1])
    events[1].guideline_version = "2026-11-02"
    events[1].task.CopyFrom(feedback_pb2.TaskDraw(project="shop", task_id="t1", probability=0.25, seconds=0.0))
    events[5].task.CopyFrom(
        feedback_pb2.TaskDraw(project="shop", task_id="t2", probability=1.0, is_uniform=True, information=0.2)
    )
    events[2].shown.CopyFrom(feedback_pb2.Shown(temperature=0.7, top_p=1.0, log_probabilities=[-3.5], token_counts=[9]))
    events[4].shown.CopyFrom(
        feedback_pb2.Shown(
            chosen=policy_pb2.Chosen(
                selection=policy_pb2.SELECTION_INFORMATIVE,
                sampled=5,
                random_share=0.1,
                is_random=True,
                set_probability=0.25,
                reward_version=common_pb2.ModelVersion(version="7"),
            ),
            show_probabilities=[0.5, 0.25],
            temperature=1.0,
            top_p=0.9,
            log_probabilities=[-1.5, 0.0],
            token_counts=[4, 1],
            scores=[0.5, -0.25],
        )
    )
    call = common_pb2.ToolCall(id="c1", name="now", arguments_json='{"b": 1, "a": 2.0}')
    called = common_pb2.Message(role="assistant", tool_calls=[call, common_pb2.ToolCall(name="f", arguments_json="{}")])
    told = common_pb2.Message(role="tool", content="noon", name="now", tool_call_id="c1")
    events[3].prompt.conversation.messages.extend([user, called, told])
    events[3].prompt.tools_json.extend(['{"name": "now"}', '{"name":  "f"}'])
    events[4].prompt.tools_json.append('{"name": "now"}')
    for event in events:
        event.arrival_time.FromMicroseconds(1_700_000_000_654_321)
    return events


def test_every_kind_of_signal_comes_back_as_it_went_in(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    written = [Recorded(f"{i}-0", event) for i, event in enumerate(every_kind(), start=1)]
    ledger.append(written)
    assert list(Ledger(tmp_path).scan()) == written


def test_segment_from_before_a_column_was_added_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    segment = ledger.append(rows(0, 3))
    assert segment is not None
    path = tmp_path / segment.name
    pq.write_table(pq.read_table(path).drop_columns(["response_versions", "strength"]), path)
    assert list(Ledger(tmp_path).scan()) == rows(0, 3)


def test_signals_of_a_segment_from_before_callers_were_known_are_named_by_their_event_ids(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    segment = ledger.append(rows(0, 3))
    assert segment is not None
    path = tmp_path / segment.name
    pq.write_table(pq.read_table(path).drop_columns(["caller", "source_id"]), path)
    later = choice(1)
    later.caller = "shop"
    Ledger(tmp_path).append([Recorded("2000-0", later)])
    found = Ledger(tmp_path)
    assert found.signal_keys() == ["e0", "e1", "e2", "shop\x1fe1"]
    assert found.keys_at(["1001-0", "2000-0"]) == {"1001-0": "e1", "2000-0": "shop\x1fe1"}
    assert [row.event.caller for row in found.scan()] == ["", "", "", "shop"]


def test_segment_from_before_turns_had_tool_calls_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    written = [Recorded(f"{i}-0", event) for i, event in enumerate(every_kind()[:3], start=1)]
    segment = ledger.append(written)
    assert segment is not None
    path = tmp_path / segment.name
    table = pq.read_table(path).drop_columns(["tools"])
    old = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    said = [[{"role": t["role"], "content": t["content"]} for t in turns] for turns in table["prompt"].to_pylist()]
    place = table.column_names.index("prompt")
    field = pa.field("prompt", old, nullable=False)
    pq.write_table(table.set_column(place, field, pa.array(said, old)), path)
    assert list(Ledger(tmp_path).scan()) == written


def test_scan_gives_the_range_that_was_asked_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for start in range(0, 40, 10):
        ledger.append(rows(start, start + 10))
    found = [row.event.event_id for row in ledger.scan("1005-0", "1025-0")]
    assert found == [f"e{i}" for i in range(6, 26)]
    assert (ledger.row_count, ledger.last_stream_id, ledger.rows_after("1025-0")) == (40, "1039-0", 14)
    assert ledger.keys_at(["1039-0", "1040-0", "999-5"]) == {"1039-0": "e39"}
    assert ledger.arrivals("1037-0") == pytest.approx([1_700_000_000.038, 1_700_000_000.039])


def test_stream_ids_are_ordered_as_numbers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([Recorded("9-0", choice(1)), Recorded("10-2", choice(2)), Recorded("10-10", choice(3))])
    assert ledger.last_stream_id == "10-10"
    assert [row.stream_id for row in ledger.scan("10-2")] == ["10-10"]


def test_compaction_keeps_every_row_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for i in range(40):
        ledger.append(rows(i, i + 1))
    assert ledger.compact(segments=32) is not None
    assert len(list(tmp_path.iterdir())) == 1
    for reader in (ledger, Ledger(tmp_path)):
        assert ids(reader) == [f"e{i}" for i in range(40)]
        assert reader.row_count == 40


def test_compaction_cut_short_neither_loses_nor_doubles(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a")
    for i in range(40):
        ledger.append(rows(i, i + 1))
    shutil.copytree(tmp_path / "a", tmp_path / "before")
    ledger.compact(segments=32)
    # What a kill between the rename and the last delete leaves: the merged segment and some of the old ones.
    for old in sorted((tmp_path / "before").iterdir())[10:]:
        shutil.copy(old, tmp_path / "a")
    assert ids(Ledger(tmp_path / "a", writable=False)) == [f"e{i}" for i in range(40)]
    reopened = Ledger(tmp_path / "a")
    assert len(list((tmp_path / "a").iterdir())) == 1
    assert (ids(reopened), reopened.row_count) == ([f"e{i}" for i in range(40)], 40)


def test_segment_that_a_compaction_deletes_once_it_is_listed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Ledger(tmp_path)
    for first in range(0, 30, 10):
        writer.append(rows(first, first + 10))
    reader = Ledger(tmp_path, writable=False)
    writer.append(rows(30, 40))
    list_sizes, lists = reader._files.sizes, 0

    def list_and_compact() -> dict[str, int]:
        nonlocal lists
        lists += 1
        sizes = list_sizes()
        if lists == 1:
            assert writer.compact(segments=2) is not None
        return sizes

    monkeypatch.setattr(reader._files, "sizes", list_and_compact)
    reader.refresh()
    assert lists == 2
    assert ids(reader) == [choice(i).event_id for i in range(40)]


def test_reader_in_the_middle_of_a_scan_survives_compaction(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for i in range(40):
        ledger.append(rows(i, i + 1))
    reader = Ledger(tmp_path, writable=False).scan()
    found = [next(reader).event.event_id for _ in range(5)]
    ledger.compact(segments=32)
    found += [row.event.event_id for row in reader]
    assert found == [f"e{i}" for i in range(40)]


def test_reader_that_listed_segments_before_a_compaction_counts_the_same(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for i in range(40):
        ledger.append(rows(i, i + 1))
    stream_ids = [row.stream_id for row in ledger.scan()]
    readers = [Ledger(tmp_path, writable=False) for _ in range(3)]
    ledger.compact(segments=32)
    assert readers[0].event_ids() == [f"e{i}" for i in range(40)]
    assert readers[1].keys_at(stream_ids) == {i: f"e{n}" for n, i in enumerate(stream_ids)}
    assert readers[2].rows_after(stream_ids[9]) == 30


def test_half_written_segment_is_not_read_and_is_removed_at_start(tmp_path: Path) -> None:
    Ledger(tmp_path).append(rows(0, 3))
    leftover = tmp_path / ".writing-2000-0_2001-0.parquet"
    leftover.write_bytes(b"PAR1 half")
    assert ids(Ledger(tmp_path)) == ["e0", "e1", "e2"]
    assert not leftover.exists()


def test_file_that_is_no_parquet_is_named_in_the_error(tmp_path: Path) -> None:
    Ledger(tmp_path).append(rows(0, 3))
    (tmp_path / "2000-0_2001-0.parquet").write_bytes(b"this is not parquet")
    with pytest.raises(CorruptSegment, match="2000-0_2001-0"):
        Ledger(tmp_path)


def test_ledger_lives_on_any_fsspec_filesystem() -> None:
    url = f"memory://ledger-{uuid.uuid4().hex}"
    ledger = Ledger(url)
    for i in range(40):
        ledger.append(rows(i, i + 1))
    ledger.compact(segments=32)
    assert ids(Ledger(url)) == [f"e{i}" for i in range(40)]


def test_segments_are_zstd_parquet_that_other_tools_read(tmp_path: Path) -> None:
    segment = Ledger(tmp_path).append(rows(0, 3))
    assert segment is not None
    file = pq.ParquetFile(tmp_path / segment.name)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.read().to_pylist()[1]["responses"] == ["poor answer 1", "good answer 1"]


def test_a_range_is_read_by_row_groups_and_not_beyond_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_files, "_ROW_GROUP", 10)
    ledger = Ledger(tmp_path)
    ledger.append(rows(0, 100))
    read: list[tuple[int, bool]] = []

    class Watched(pq.ParquetFile):  # type: ignore[misc]
        def read_row_group(self, i: int, columns: object = None, **options: object) -> object:
            read.append((i, columns is None))
            return super().read_row_group(i, columns=columns, **options)

    monkeypatch.setattr(segment_files.pq, "ParquetFile", Watched)
    assert [row.event.event_id for row in ledger.scan("1084-0", "1092-0")] == [f"e{i}" for i in range(85, 93)]
    assert [i for i, is_whole in read if is_whole] == [8, 9]


def test_counting_new_signals_reads_a_segment_once_however_often_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    for start in range(0, 100, 20):
        ledger.append(rows(start, start + 20))
    read: list[str] = []
    whole = segment_files.SegmentFiles.read

    def watched(self: segment_files.SegmentFiles, name: str, columns: list[str] | None = None) -> object:
        read.append(name)
        return whole(self, name, columns)

    monkeypatch.setattr(segment_files.SegmentFiles, "read", watched)
    assert [ledger.rows_after("1049-0") for _ in range(50)] == [50] * 50
    assert read == ["1040-0_1059-0.parquet"]
    ledger.append(rows(100, 130))
    assert (ledger.rows_after("1049-0"), ledger.rows_after("1129-0"), ledger.row_count) == (80, 0, 130)
    assert len(read) == 1


def test_the_newest_rows_begin_at_the_border_of_a_segment(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for start in range(0, 100, 20):
        ledger.append(rows(start, start + 20))
    found = {wanted: ledger.newest_from(wanted, "1089-0") for wanted in (1, 10, 11, 30, 31, 90, 1_000)}
    assert found == {1: "1079-0", 10: "1079-0", 11: "1059-0", 30: "1059-0", 31: "1039-0", 90: "", 1_000: ""}


def test_a_start_reads_the_index_instead_of_the_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Ledger(tmp_path)
    for i in range(100):
        writer.append(rows(i, i + 1))
    before = Ledger(tmp_path)  # writes the index
    assert (tmp_path / "segments.json").exists()
    opened: list[object] = []
    plain = segment_files.pq.ParquetFile
    monkeypatch.setattr(segment_files.pq, "ParquetFile", lambda file: opened.append(file) or plain(file))
    again = Ledger(tmp_path)
    assert (again.segments, opened) == (before.segments, [])
    again.append(rows(100, 103))
    assert (Ledger(tmp_path).row_count, len(opened)) == (103, 1)
    (tmp_path / "segments.json").write_text("{")
    assert (Ledger(tmp_path).row_count, len(opened)) == (103, 1 + 101)
    merged = again.compact(segments=32)
    assert merged is not None
    assert (Ledger(tmp_path).row_count, ids(Ledger(tmp_path))) == (103, [f"e{i}" for i in range(103)])
