"""Every published shape is read right, or refused with a way forward. The documentation's table is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.shape_cases import CASES, Case
from support.shape_table import PAGE, read, refusal, table

from rewardloop_cli.feedback import convert
from rewardloop_data.judgements import Judgement, digest_of
from rewardloop_data.recognise import UnclearFile, recognise
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.shape)
def test_a_published_shape_is_read_right_or_refused_with_a_way_forward(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.content)
    if case.refused:
        assert case.refused in refusal(path)
        if case.flags:
            assert read(path, case.choices)[0] == list(case.then)
        return
    said, reasons = read(path, Choices())
    assert said == list(case.says)
    assert len(reasons) == case.rejected


def test_at_least_35_shapes_are_in_the_table_and_it_is_true() -> None:
    assert len({case.shape for case in CASES}) == len(CASES) >= 35
    assert PAGE.read_text(encoding="utf-8") == table(), "python -m support.shape_table writes the page"


def test_a_name_that_is_no_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(UnclearFile, match="--format nope: is not one of"):
        read(path, Choices("nope"))


@pytest.mark.parametrize("case", [each for each in CASES if each.says or each.then], ids=lambda case: case.shape)
def test_a_converted_file_says_the_same_without_a_flag(case: Case, tmp_path: Path) -> None:
    path, out = tmp_path / case.name, tmp_path / "out" / "clear.jsonl"
    out.parent.mkdir()
    path.write_bytes(case.content)
    choices = case.choices if case.refused else Choices()
    code = convert.run(str(path), out, choices)
    assert case.refused or code == int(case.rejected > 0)
    reading = Choices(is_verbatim=choices.is_verbatim)
    assert sorted(read(out, reading)[0]) == sorted(case.then if case.refused else case.says)
    assert _ids(out, reading) == _ids(path, choices)


def _is_copy(judgement: Judgement) -> bool:
    """Return whether a judgement is one of several equal ones of a row, which convert tells apart by their ids."""
    return bool(judgement.copy) or "#" in judgement.key


def _ids(path: Path, choices: Choices) -> set[str]:
    source = SourceFile.of(path)
    reading = recognise(source.shown, source.lines(), choices)
    found = set()
    for line in source.lines():
        try:
            found |= {digest_of(each) for each in reading.judgements(line.value()) if not _is_copy(each)}
        except RowError:
            continue
    return found
