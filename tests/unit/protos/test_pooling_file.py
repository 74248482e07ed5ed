"""The file that a version holds instead of a graph: it comes back as it was, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rewardloop.formats.storing.pooling_file import BadPoolingFile, PoolingFile, Probe

FILE = PoolingFile(
    "judge",
    (-1.0, 1.0),
    0.001,
    (
        Probe((("system", "Be brief."), ("user", "Grüße 🙂")), "no", (1, 2, 3), (0.5, -0.25)),
        Probe((("user", "Hello"),), "", (1,), (2.0, 0.0)),
    ),
)


def test_what_is_written_is_read() -> None:
    assert PoolingFile.from_json(FILE.to_json()) == FILE
    assert (FILE.outputs, FILE.heads) == (2, 1)
    heads = PoolingFile("judge", None, 0.1, FILE.probes)
    assert PoolingFile.from_json(heads.to_json()) == heads
    assert heads.heads == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.update(form=2), "form is 2"),
        (lambda file: file.update(output="probabilities"), "output is 'probabilities'"),
        (lambda file: file.update(extra=1), "no others"),
        (lambda file: file.pop("tolerance"), "tolerance"),
        (lambda file: file.update(tolerance=0), "a tolerance above 0"),
        (lambda file: file.update(tolerance=float("nan")), "not finite"),
        (lambda file: file.update(name=""), "lacks a name"),
        (lambda file: file.update(name=7), "name is no text"),
        (lambda file: file.update(probes=[]), "probes with logits"),
        (lambda file: file.update(weights=[1.0]), "1 weights for 2 outputs"),
        (lambda file: file["probes"][0].update(ids=[-1]), "ids are not whole numbers"),
        (lambda file: file["probes"][0].update(ids=[]), "no ids"),
        (lambda file: file["probes"][0].update(logits=[True, 1.0]), "not numbers"),
        (lambda file: file["probes"][1].update(logits=[1.0]), "differ in the number of logits"),
        (lambda file: file["probes"][0]["conversation"][0].pop("role"), "role, content"),
    ],
)
def test_anything_else_is_refused(change: Callable[[Any], object], reason: str) -> None:
    raw = json.loads(FILE.to_json())
    change(raw)
    with pytest.raises(BadPoolingFile, match=reason):
        PoolingFile.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "[]", "7", '{"form": 1', "[" * 100_000, '{"form": 1e999}'])
def test_what_is_no_such_file_is_refused(text: str) -> None:
    with pytest.raises(BadPoolingFile):
        PoolingFile.from_json(text)
