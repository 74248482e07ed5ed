"""``rewardloop export --precision``: taken where held-out pairs prove it, else float32 and the reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import onnx
import pytest
from support.reward_bases import save_base

from rewardloop.formats.store import MODEL, Manifest, ModelStore
from rewardloop.formats.text import Turn
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.data.files.gate_pairs import CorruptPairs, read_pairs

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


def _export(base: Path, store: Path, *flags: str) -> tuple[Manifest, set[str]]:
    shared = ["--base", str(base), "--store", str(store), "--heads", "2", "--max-length", "64"]
    assert export_cli.main([*shared, "--precision", "int8", *flags]) == 0
    graph = onnx.load(str(ModelStore(store).fetch("reward", 1) / MODEL))
    return ModelStore(store).manifest("reward", 1), {n.op_type for n in graph.graph.node}


def _write(path: Path, count: int) -> Path:
    rows = ({"prompt": f"question {i}", "chosen": "good " * (i % 9 + 1), "rejected": f"{i} bad"} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_without_pairs_it_is_taken_and_said_to_be_unproved(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, operators = _export(base, tmp_path / "store")
    assert manifest.precision == "int8"
    assert "MatMulIntegerToFloat" in operators
    assert "not compared with float32" in manifest.notes["precision"]
    assert manifest.notes["precision"] in capsys.readouterr().err


def test_too_few_pairs_leave_it_in_float32_with_the_reason(base: Path, tmp_path: Path) -> None:
    pairs = _write(tmp_path / "pairs.jsonl", 30)
    manifest, operators = _export(base, tmp_path / "store", "--gate-pairs", str(pairs))
    assert manifest.precision == "float32"
    assert "MatMulIntegerToFloat" not in operators
    assert manifest.notes["precision"].startswith("int8 was refused: 14 held-out pairs")


def test_enough_pairs_decide_by_their_agreement(base: Path, tmp_path: Path) -> None:
    pairs = _write(tmp_path / "pairs.jsonl", 230)
    manifest, operators = _export(base, tmp_path / "store", "--gate-pairs", str(pairs))
    is_taken = manifest.metrics["precision_agreement"] >= 0.995
    assert manifest.metrics["precision_pairs"] == 214
    assert manifest.precision == ("int8" if is_taken else "float32")
    assert ("MatMulIntegerToFloat" in operators) == is_taken
    assert ("precision" in manifest.notes) != is_taken


def test_pairs_are_read_as_texts_or_conversations_plain_or_gzipped(tmp_path: Path) -> None:
    rows = [
        {"prompt": "why", "chosen": "a\u2028b", "rejected": "c"},
        {"prompt": [{"role": "system", "content": "be kind"}], "chosen": "d", "rejected": "e"},
        {"prompt": "why", "chosen": "same", "rejected": "same"},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "pairs.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("pairs.jsonl", "pairs.jsonl.gz"):
        first, second = read_pairs(tmp_path / name)
        assert (first.prompt, first.chosen, first.rejected) == ((Turn("user", "why"),), "a\u2028b", "c")
        assert second.prompt == (Turn("system", "be kind"),)


@pytest.mark.parametrize(
    "line", ["{", '{"prompt": "x", "chosen": "y"}', '{"prompt": 3, "chosen": "y", "rejected": "z"}']
)
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, line: str) -> None:
    path = _write(tmp_path / "pairs.jsonl", 1)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(CorruptPairs, match="row 2"):
        read_pairs(path)
