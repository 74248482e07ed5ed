"""`rewardloop feedback import` on doubtful, repeated, piped and remote files, over the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.client_servers import Services, killed_import, serving

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def _jsonl(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rewardloop_cli.main", "feedback", *map(str, arguments)]


def _run(*arguments: object, timeout_s: float = 120, **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(_command(*arguments), capture_output=True, timeout=timeout_s, check=False, **options)


def test_a_dry_run_shows_examples_and_the_import_sends_what_they_show(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        _jsonl([{"system": "Be short.", **PAIR}, {**PAIR, "prompt": "p", "annotator": "x"}, {**PAIR, "chosen": ""}])
    )
    services = Services()
    with serving(services) as server:
        dry = _run("import", path, "--dry-run", "--server", "127.0.0.1:1")
        assert dry.returncode == 1
        shown = dry.stdout.decode()
        assert "3 rows, read as pair: 2 choices" in shown
        assert "1 row holds no signal, such as line 3: chosen: is empty" in shown
        assert "example 1: system: Be short. | user: q\n    better: good\n    worse: bad" in shown
        assert "better (by x): good" in shown
        assert not services.calls
        done = _run("import", path, "--server", server)
    assert done.returncode == 1
    assert "example 1: system: Be short. | user: q" in done.stderr.decode()
    first = next(event for event in services.seen.values() if not event.annotator_id)
    assert [m.content for m in first.prompt.conversation.messages] == ["Be short.", "q"]
    (import_id,) = {event.import_id for event in services.seen.values()}
    assert f"(import {import_id})" in shown
    assert f"feedback retract {import_id}" in done.stdout.decode()


def test_nothing_of_a_doubtful_file_is_sent_until_a_flag_settles_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        _jsonl({"prompt": f"q{n}", "responses": ["good", "bad"], "chosen": 1 + (n == 900)} for n in range(1000))
    )
    services = Services()
    with serving(services) as server:
        refused = _run("import", path, "--server", server)
        assert (refused.returncode, services.calls) == (2, [])
        assert b"--one-based or --zero-based" in refused.stderr
        done = _run("import", path, "--server", server, "--one-based")
    assert done.returncode == 0
    chosen = {event.prompt.text: event.choice.chosen for event in services.seen.values()}
    assert len(chosen) == 1000
    assert {text for text, index in chosen.items() if index} == {"q900"}


def test_a_judgement_counts_once_whatever_stands_beside_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.csv"
    first.write_bytes(_jsonl([{**PAIR, "exported_at": "1", "annotator": "x"}, {**PAIR, "prompt": "p"}]))
    second.write_text("exported_at,prompt,chosen,rejected,annotator\n2,q,good,bad,x\n2,p,good,bad,\n")
    services = Services()
    with serving(services) as server:
        assert b"2 signals recorded, 0 duplicates" in _run("import", first, "--server", server).stdout
        again = _run("import", second, "--server", server, "--source", "llm_judge", "--tag", "a=b")
    assert again.returncode == 0
    assert b"0 signals recorded, 2 duplicates" in again.stdout
    assert len(services.seen) == 2


def test_equal_judgements_of_nobody_by_name_count_once_unless_each_is_to_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    named = [{**PAIR, "annotator": name} for name in ("x", "y")]
    path.write_bytes(_jsonl([PAIR, PAIR, PAIR, *named, {**PAIR, "annotation_id": 1}, {**PAIR, "annotation_id": 2}]))
    services = Services()
    with serving(services) as server:
        once = _run("import", path, "--server", server)
        assert b"2 judgements are equal to an earlier one, and neither names who judged" in once.stderr
        assert len(services.seen) == 5
        each = _run("import", path, "--server", server, "--count-copies")
    assert each.returncode == 0
    assert len(services.seen) == 7


def test_standard_input_and_pipes_are_read(tmp_path: Path) -> None:
    services = Services()
    with serving(services) as server:
        done = _run("import", "-", "--server", server, input=_jsonl([PAIR]), cwd=tmp_path)
        assert b"stdin: 1 row, 1 signal recorded" in done.stdout
        (tmp_path / "a.csv").write_text("prompt,chosen,rejected\np,good,bad\n")
        command = f"{' '.join(_command('import'))} <(cat a.csv) --server {server}"
        piped = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, cwd=tmp_path, check=False)
        assert b"1 signal recorded" in piped.stdout, piped.stderr
    assert {event.prompt.text for event in services.seen.values()} == {"q", "p"}
    assert [each.name for each in tmp_path.iterdir()] == ["a.csv"]


def test_urls_are_read_through_fsspec_and_an_unknown_one_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_jsonl([PAIR]))
    services = Services()
    with serving(services) as server:
        done = _run("import", f"file://{path}", "--server", server, cwd=tmp_path)
        assert b"1 signal recorded" in done.stdout, done.stderr
        for location in (f"file://{path}.none", "nothing://a/b"):
            failed = _run("import", location, "--server", server, cwd=tmp_path)
            assert failed.returncode == 2
            assert len(failed.stderr.splitlines()) == 1
            assert b"cannot be read" in failed.stderr


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_large_file_killed_in_the_middle_is_resumed_without_loss_or_double(tmp_path: Path) -> None:
    """IMPORT_MB=200 makes the file larger."""
    size = int(os.environ.get("IMPORT_MB", "20"))
    path, rows, padding = tmp_path / "big.jsonl", 200 * size, "word " * 1000
    with path.open("wb") as file:
        for n in range(rows):
            file.write(json.dumps({"prompt": f"q{n}", "chosen": f"{padding}good", "rejected": "bad"}).encode() + b"\n")
    assert path.stat().st_size >= 1e6 * size
    side = tmp_path / "big.jsonl.rewardloop-progress.json"
    services = Services()
    with serving(services) as server:
        first, second = (
            killed_import(services, _command("import", path, "--server", server), side, int(share * rows))
            for share in (0.4, 0.8)
        )
        assert 0 < first < second < rows
        done = _run("import", path, "--server", server, timeout_s=900)
    shown = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert f"{rows} rows" in shown
    assert f"going on after line {second}" in done.stderr.decode()
    assert len(services.seen) == rows
    assert services.prompts() == {f"q{n}" for n in range(rows)}
    recorded, known = map(int, re.findall(r"(\d+) signals recorded, (\d+) duplicates", shown)[0])
    assert recorded + known == rows
    assert len({event.import_id for event in services.seen.values()}) == 1
