"""What learning cost a policy on the tasks of EleutherAI's lm-eval, beside the version before it.

Tasks are read from local files, so that nothing is fetched. Both policies get the same documents, and the difference of
each document's value is the unit of the interval.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rewardloop_trainer.assessment.measures import mean_of
from rewardloop_trainer.clusters import ClusteredMean
from rewardloop_trainer.reward.evaluate import Floats

INSTALL = "pip install 'rewardloop[lm-eval]'"
# The figure of a task that decides, the first of these that it has.
_FIGURES = ("acc_norm", "acc", "exact_match", "f1", "mcc")
_FILTER = ",none"


class NoTasks(ValueError):
    """Raised if lm-eval is not installed, or has no such task among the files. The message says what to do."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a policy does on one task.

    Attributes:
        name: The task.
        figures: All of lm-eval's figures of it, under lm-eval's names, such as "acc,none".
        deciding: The name of the figure that is compared, without its filter.
        values: The value of each document by its number.
        documents: Prompt and answers of each document as lm-eval sent them, by its number.
    """

    name: str
    figures: Mapping[str, float]
    deciding: str
    values: Mapping[int, float]
    documents: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class TaskDifference:
    """A policy against another one on the documents of a task; a positive difference is a gain."""

    name: str
    deciding: str
    difference: ClusteredMean
    lost: tuple[str, ...]


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], directory: Path | None, *, limit: int = 0, batch_size: int = 8
) -> dict[str, TaskResult]:
    """Run tasks on a policy, as ``lm_eval --model hf --tasks ... --include_path DIRECTORY`` does.

    Args:
        model: A causal LM in evaluation mode.
        tokenizer: Its Hugging Face tokenizer.
        tasks: The names of the tasks.
        directory: Where their YAML files are, beside lm-eval's own; None: lm-eval's own alone.
        limit: Documents of each task; 0: all.
        batch_size: Sequences of one forward pass.

    Raises:
        NoTasks: If lm-eval is not installed, or does not have a task.
    """
    if find_spec("lm_eval") is None:
        raise NoTasks(f"tasks need lm-eval: {INSTALL}")
    # Data sets are read from the tasks' own files; a task that names a hub's is refused, not fetched.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(directory) if directory else None)
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise NoTasks(f"lm-eval has no task {', '.join(unknown)}{f' in {directory}' if directory else ''}")
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device))
    found: Any = simple_evaluate(
        model=wrapped,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit or None,
        log_samples=True,
        bootstrap_iters=0,
    )
    return {name: _result(name, found["results"][name], found["samples"][name]) for name in sorted(found["samples"])}


def compare_tasks(ours: Mapping[str, TaskResult], theirs: Mapping[str, TaskResult]) -> list[TaskDifference]:
    """Compare two policies on the tasks that both ran, document by document."""
    found = []
    for name in sorted(set(ours) & set(theirs)):
        one, other = ours[name], theirs[name]
        shared = sorted(set(one.values) & set(other.values))
        gains: Floats = np.array([one.values[i] - other.values[i] for i in shared], dtype=np.float64)
        lost = tuple(one.documents[i] for i, gain in zip(shared, gains, strict=True) if gain < 0)
        found.append(TaskDifference(name, one.deciding, mean_of(gains, np.arange(len(gains))), lost))
    return found


def _result(name: str, figures: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> TaskResult:
    numbers = {key: float(value) for key, value in figures.items() if isinstance(value, int | float)}
    deciding = next((each for each in _FIGURES if f"{each}{_FILTER}" in numbers), "")
    if not deciding:
        deciding = next((key.partition(",")[0] for key in numbers if "stderr" not in key), "")
    if not deciding or any(deciding not in sample for sample in samples):
        raise NoTasks(f"task {name}: has no figure of each document to compare: {', '.join(numbers) or 'none'}")
    return TaskResult(
        name,
        numbers,
        deciding,
        {int(sample["doc_id"]): float(sample[deciding]) for sample in samples},
        {int(sample["doc_id"]): _said(sample) for sample in samples},
    )


def _said(sample: Mapping[str, Any]) -> str:
    """The document, the target and the answer, for a reader."""
    doc = sample.get("doc")
    return f"{doc}\ntarget: {sample.get('target')}\nanswer: {sample.get('filtered_resps')}"
