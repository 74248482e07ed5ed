"""Tasks through us give what EleutherAI's lm-eval gives when it is called by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.policy_versions import byte_encoder, publish_policy, small_llama

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.assessment.policies.alignment_tax import NoTasks, compare_tasks, run_tasks
from rewardloop_trainer.policy.start import PolicyStart, start_from_store

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'rewardloop[lm-eval]'")

TASK = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one task of 24 questions."""
    directory = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{i}+1=", "choices": [str(i), str(i + 1)], "label": i % 2} for i in range(24)]
    file = directory / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "sums.yaml").write_text(TASK.format(file=file))
    return directory


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> list[PolicyStart]:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    for seed in (0, 1):
        publish_policy(store, small_llama(seed), byte_encoder())
    return [start_from_store(store, version, 0) for version in ("1", "2")]


def test_a_local_task_gives_what_lm_eval_gives_by_hand(tasks: Path, starts: list[PolicyStart], tmp_path: Path) -> None:
    ours = run_tasks(starts[0].load(), starts[0].tokenizer()(), ["sums"], tasks)["sums"]
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={starts[0].source}"),
        *("--tasks", "sums", "--include_path", str(tasks), "--output_path", str(tmp_path), "--device", "cpu"),
        *("--batch_size", "8", "--log_samples"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=environment)
    assert done.returncode == 0, done.stderr[-2_000:]
    (results,) = tmp_path.rglob("results_*.json")
    by_hand = json.loads(results.read_text())["results"]["sums"]
    (samples,) = tmp_path.rglob("samples_sums_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    figures = {name: value for name, value in by_hand.items() if "stderr" not in name and isinstance(value, float)}
    assert {"acc,none", "acc_norm,none"} <= set(figures)
    assert {name: ours.figures[name] for name in figures} == figures
    assert ours.values == {row["doc_id"]: row[ours.deciding] for row in rows}


def test_two_policies_are_compared_by_document_and_unknown_tasks_are_named(
    tasks: Path, starts: list[PolicyStart]
) -> None:
    results = [run_tasks(start.load(), start.tokenizer()(), ["sums"], tasks) for start in starts]
    (found,) = compare_tasks(*results)
    expected = results[0]["sums"].figures["acc_norm,none"] - results[1]["sums"].figures["acc_norm,none"]
    assert found.difference.mean == pytest.approx(expected)
    with pytest.raises(NoTasks, match="no task nothing"):
        run_tasks(starts[0].load(), starts[0].tokenizer()(), ["nothing"], tasks)
