"""The command `label retract`: takes the tasks of imports back."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rewardloop_cli.connect import open_client


def run(server: str, project: str, import_ids: Sequence[str], *, answers: bool, as_json: bool) -> int:
    """Take imports back, and print how much that was. Returns 0. Raises RewardloopError."""
    with open_client(server, timeout_s=300.0) as client:
        for import_id in import_ids:
            gone = client.labelling.retract_tasks(project, import_id, answers=answers)
            if as_json:
                print(json.dumps({"import_id": import_id, "tasks": gone.tasks, "answers": gone.answers}), flush=True)
                continue
            also = f" and {gone.answers} answers and skips" if answers else "; what was answered stays"
            print(f"import {import_id}: {gone.tasks} tasks taken back{also}", flush=True)
    return 0
