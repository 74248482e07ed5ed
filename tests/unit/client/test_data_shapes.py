"""Every published shape is read right, or refused with a way forward. The documentation's table is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.shape_cases import CASES, Case
from support.shape_table import PAGE, read, refusal, table

from rewardloop_data.recognise import UnclearFile
from rewardloop_data.shapes.shape import Choices


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
