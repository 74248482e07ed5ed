"""`rewardloop feedback import` against a real gRPC FeedbackService: nothing lost, nothing twice, clear complaints."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.client_servers import Services, killed_import, serving, status

from rewardloop_cli.feedback import imports as feedback_import
from rewardloop_cli.feedback.sending import BATCH_EVENTS
from rewardloop_data.shapes.shape import Choices


def _rows(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"prompt": f"q{n}", "chosen": "good", "rejected": "bad"} for n in range(start, start + count)]


def _jsonl(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _import(path: Path, server: str, *, patience_s: float = 5, restart: bool = False, side_dir=None) -> int:
    options = feedback_import.ImportOptions(
        server, patience_s=patience_s, side_dir=side_dir, restart=restart, choices=Choices()
    )
    return feedback_import.run([str(path)], options)


def _parquet(path: Path, rows) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("kind", ["plain", "gz", "parquet"])
def test_every_row_is_recorded_once_and_a_second_import_finds_duplicates(tmp_path: Path, kind: str, capsys) -> None:
    path = tmp_path / {"plain": "a.jsonl", "gz": "a.jsonl.gz", "parquet": "a.parquet"}[kind]
    if kind == "parquet":
        _parquet(path, _rows(1200))
    else:
        data = _jsonl(_rows(1200))
        path.write_bytes(data if kind == "plain" else gzip.compress(data))
    services = Services()
    with serving(services) as server:
        assert _import(path, server) == 0
        assert {e.prompt.text for e in services.seen.values()} == {f"q{n}" for n in range(1200)}
        assert max(services.batch_sizes) == 500
        assert "1200 rows, 1200 signals recorded, 0 duplicates, 0 rows rejected" in capsys.readouterr().out
        assert _import(path, server) == 0
        assert "0 signals recorded, 1200 duplicates" in capsys.readouterr().out
        assert len(services.seen) == 1200
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_same_rows_have_the_same_ids_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(_rows(20)))
    _parquet(tmp_path / "a.parquet", _rows(20))
    services = Services()
    with serving(services) as server:
        assert _import(tmp_path / "a.jsonl", server) == _import(tmp_path / "a.parquet", server) == 0
    assert len(services.seen) == 20


def test_bad_rows_are_named_kept_and_do_not_stop_the_rest(tmp_path: Path, capsys) -> None:
    lines = [_jsonl([row]) for row in _rows(30)]
    lines[3] = b"{not json\n"
    lines[7] = b"\n"
    lines[9] = b'{"prompt": "q", "chosen": "", "rejected": "b"}\n'
    lines[11] = b"\xff\xfe\n"
    for n in range(15, 27):
        lines[n] = b'{"prompt": NaN}\n'
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines))
    services = Services()
    with serving(services) as server:
        assert _import(path, server) == 1
    shown = capsys.readouterr()
    assert "a.jsonl:4: is not JSON" in shown.err
    assert "a.jsonl:10: chosen: is empty" in shown.err
    assert len(re.findall(r"a\.jsonl:\d+:", shown.err)) == 10
    assert "29 rows, 14 signals recorded, 0 duplicates, 15 rows rejected" in shown.out
    kept = [json.loads(line) for line in (tmp_path / "a.jsonl.rejected.jsonl").read_text().splitlines()]
    assert [r["line"] for r in kept] == [4, 10, 12, *range(16, 28)]
    assert kept[0]["row"] == "{not json"
    assert kept[1]["row"] == {"prompt": "q", "chosen": "", "rejected": "b"}


def test_rows_that_the_server_refuses_are_rejected_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_jsonl(_rows(5)))
    services = Services()
    with serving(services) as server:
        assert _import(path, server) == 0
        refused = [i for i, e in services.seen.items() if e.prompt.text == "q2"]
        services.seen.clear()
        services.event_failures = {refused[0]: [status("INVALID_REQUEST", field="responses[0]")]}
        assert _import(path, server) == 1
    (kept,) = (tmp_path / "a.jsonl.rejected.jsonl").read_text().splitlines()
    assert json.loads(kept)["line"] == 3
    assert "INVALID_REQUEST" in json.loads(kept)["reason"]


def test_rows_too_big_for_one_message_are_split_off_and_rejected_alone(tmp_path: Path) -> None:
    rows = _rows(3)
    rows[1]["chosen"] = "x" * (5 * 1024 * 1024)  # the test's server takes gRPC's default of 4 MiB
    path = tmp_path / "a.jsonl"
    path.write_bytes(_jsonl(rows))
    services = Services()
    with serving(services) as server:
        assert _import(path, server) == 1
    assert {e.prompt.text for e in services.seen.values()} == {"q0", "q2"}


def test_files_of_one_name_do_not_overwrite_each_others_rejected_rows(tmp_path: Path) -> None:
    side = tmp_path / "side"
    side.mkdir()
    with serving(Services()) as server:
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.jsonl").write_bytes(_jsonl([{"prompt": folder, "chosen": "", "rejected": "b"}]))
            assert _import(tmp_path / folder / "a.jsonl", server, side_dir=side) == 1
    kept = sorted(json.loads(path.read_text())["row"]["prompt"] for path in side.iterdir())
    assert kept == ["one", "two"]


def test_a_row_of_more_signals_than_a_call_may_carry_is_recorded_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_jsonl([{"prompt": "q", "response": "a", "up": 900, "down": 400}]))
    services = Services()
    services.failures = [status("INVALID_REQUEST", field="events")]  # the server takes fewer than we send
    with serving(services) as server:
        assert _import(path, server) == 0
    assert sum(e.thumb.up for e in services.seen.values()) == 900
    assert len(services.seen) == 1300
    assert max(services.batch_sizes) <= BATCH_EVENTS


def test_it_waits_while_redis_is_away_and_then_goes_on(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_jsonl(_rows(40)))
    services = Services()
    services.failures = [status("REDIS_UNAVAILABLE", retry_after_s=0.01)] * 6
    with serving(services) as server:
        assert _import(path, server) == 0
    assert len(services.seen) == 40
    assert "waiting up to 5 s: REDIS_UNAVAILABLE" in capsys.readouterr().err


def test_it_waits_for_a_server_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_jsonl(_rows(40)))
    with serving(Services()) as server:
        pass
    services, codes = Services(), []
    importing = threading.Thread(target=lambda: codes.append(_import(path, server, patience_s=30)))
    importing.start()
    time.sleep(1.5)
    with serving(services, port=int(server.rpartition(":")[2])):
        importing.join(30)
    assert codes == [0]
    assert len(services.seen) == 40


def test_patience_ends_and_the_next_run_goes_on_where_it_stopped(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.jsonl"
    bad = [{"prompt": "", "chosen": "a", "rejected": "b"}]
    path.write_bytes(_jsonl(_rows(1999)[:100] + bad + _rows(2000, start=100)))
    services = Services()

    def leave(context) -> None:
        services.failures = [status("REDIS_UNAVAILABLE", retry_after_s=0.01)] * 10_000
        services._begin("", context)

    services.failures = [lambda context: None, lambda context: None, leave]
    with serving(services) as server:
        assert _import(path, server, patience_s=0.5) == 2
        assert "goes on where this one stopped" in capsys.readouterr().err
        progress = json.loads((tmp_path / "a.jsonl.rewardloop-progress.json").read_text())
        assert 0 < progress["lines_done"] < 2000
        with (tmp_path / "a.jsonl.rejected.jsonl").open("a") as half_written:
            half_written.write('{"line": 1999')
        services.failures = []
        assert _import(path, server) == 1
    shown = capsys.readouterr()
    assert f"going on after line {progress['lines_done']}" in shown.err
    assert "2101 rows" in shown.out
    assert {e.prompt.text for e in services.seen.values()} == {f"q{n}" for n in range(2100)}
    (kept,) = (tmp_path / "a.jsonl.rejected.jsonl").read_text().splitlines()
    assert json.loads(kept)["line"] == 101


def test_progress_of_another_file_or_server_or_before_restart_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    side = tmp_path / "a.jsonl.rewardloop-progress.json"
    path.write_bytes(_jsonl(_rows(1500)))
    services = Services()
    with serving(services) as server:

        def stop_midway() -> None:
            services.seen.clear()
            path.write_bytes(_jsonl(_rows(1500)))
            side.unlink(missing_ok=True)
            services.failures = [lambda context: None] * 2
            services.failures += [status("REDIS_UNAVAILABLE", retry_after_s=0.01)] * 1000
            assert _import(path, server, patience_s=0.3) == 2
            assert json.loads(side.read_text())["lines_done"] > 0
            services.failures, services.calls = [], []

        stop_midway()
        services.seen.clear()
        assert _import(path, server, restart=True) == 0
        assert len(services.seen) == 1500

        stop_midway()
        path.write_bytes(_jsonl(_rows(1500, start=5000)))
        assert _import(path, server) == 0
        assert {f"q{n}" for n in range(5000, 6500)} <= {e.prompt.text for e in services.seen.values()}

        stop_midway()
        elsewhere = Services()
        with serving(elsewhere) as other:
            assert _import(path, other) == 0
        assert len(elsewhere.seen) == 1500

        stop_midway()
        side.write_text("{}")
        assert _import(path, server) == 0


def test_a_killed_import_is_resumed_without_loss_or_double(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_jsonl(_rows(6000)))
    services = Services()
    with serving(services) as server:
        command = [sys.executable, "-m", "rewardloop_cli.main", "feedback", "import", str(path), "--server", server]
        killed_at = killed_import(services, command, tmp_path / "a.jsonl.rewardloop-progress.json", 4000)
        assert 0 < killed_at < 6000
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"going on after line {killed_at}" in done.stderr
    assert len(services.seen) == 6000
    assert "6000 rows" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.jsonl", None, "no such file"),
        ("empty.jsonl", b"", "is empty"),
        ("blank.jsonl", b"\n \n", "has no rows"),
        ("no.jsonl.gz", b"plain text", "is not a gzip file"),
        ("no.parquet", b"plain text", "is not a readable Parquet file"),
        ("no.pq", b"PAR1 and nothing", "is not a readable Parquet file"),
    ],
)
def test_a_file_that_is_none_is_one_clear_line(tmp_path: Path, name: str, content, complaint: str, capsys) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with serving(Services()) as server:
        assert _import(tmp_path / name, server) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert name in error
    assert len(error.splitlines()) == 1


def test_a_directory_is_refused(tmp_path: Path, capsys) -> None:
    assert _import(tmp_path, "127.0.0.1:1") == 2
    assert "is a directory" in capsys.readouterr().err


def test_of_a_cut_off_gzip_file_the_rows_before_the_cut_are_recorded(tmp_path: Path, capsys) -> None:
    whole = gzip.compress(_jsonl({"prompt": os.urandom(60).hex(), "chosen": "a", "rejected": "b"} for _ in range(999)))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    services = Services()
    with serving(services) as server:
        assert _import(path, server) == 2
    assert "cut off or damaged after line" in capsys.readouterr().err
    assert 100 < len(services.seen) < 999


def test_side_files_go_elsewhere_when_the_files_folder_is_read_only(tmp_path: Path, monkeypatch, capsys) -> None:
    folder, here = tmp_path / "data", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    path = folder / "a.jsonl"
    path.write_bytes(_jsonl([*_rows(1), {"prompt": "q"}]))
    folder.chmod(0o555)  # root is not stopped by this, but must respect it
    monkeypatch.chdir(here)
    with serving(Services()) as server:
        assert _import(path, server) == 1
        assert f"is not writable: side files go to {here}" in capsys.readouterr().err
        (kept,) = here.iterdir()
        assert re.fullmatch(r"a\.jsonl\.[0-9a-f]{8}\.rejected\.jsonl", kept.name)
        assert _import(path, server, side_dir=tmp_path) == 1
    assert (tmp_path / kept.name).read_text() == kept.read_text() != ""
    assert [p.name for p in folder.iterdir()] == ["a.jsonl"]
    folder.chmod(0o755)


def test_parquet_text_that_is_not_utf8_is_said_in_one_line(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.parquet"
    _parquet(path, [{"prompt": "qqqqqqqqqq", "chosen": "good", "rejected": "bad"}])
    data = path.read_bytes()
    assert b"qqqqqqqqqq" in data
    path.write_bytes(data.replace(b"qqqqqqqqqq", b"\xff\xfeqqqqqqqq"))
    with serving(Services()) as server:
        assert _import(path, server) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "a.parquet" in line]
    assert "not a readable Parquet file" in line
