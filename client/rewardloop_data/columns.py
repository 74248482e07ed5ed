"""Finds the values of keys by the paths that --column gives.

A path is the name of a key, or names with dots between them: ``fields.prompt``. In a list, ``*`` takes every entry, a
number takes the only entry, and ``[name=VALUE]`` takes the only entry whose ``name`` is VALUE.
"""

from __future__ import annotations

from collections.abc import Mapping

from rewardloop_data.rows import Json, RowError, short


def placed(row: Mapping[str, Json], columns: Mapping[str, str]) -> dict[str, Json]:
    """Return the row with the values at their keys. A key that gave its whole value to another one is left out.

    Raises:
        RowError: A path leads into a list of several entries without saying which.
    """
    found = {key: value_at(row, path) for key, path in columns.items()}
    moved = set(columns.values())
    left = {key: value for key, value in row.items() if key not in moved}
    return left | {key: value for key, value in found.items() if value is not None}


def value_at(row: Mapping[str, Json], path: str) -> Json:
    """Return what a path leads to, or None. Raises RowError."""
    if path in row:  # a table may have names with dots
        return row[path]
    return _walk(dict(row), path.split("."), path)


def _walk(value: Json, steps: list[str], path: str) -> Json:
    if not steps or value is None:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(value, dict):
        return _walk(value.get(step), rest, path)
    if not isinstance(value, list):
        return None
    if step == "*":
        return [_walk(each, rest, path) for each in value]
    if step.startswith("[") and step.endswith("]") and "=" in step:
        key, _, wanted = step[1:-1].partition("=")
        same: list[Json] = [each for each in value if isinstance(each, dict) and str(each.get(key)) == wanted]
    else:
        if not step.isdigit():
            raise RowError(f"--column {path}: {short(step)} is no entry of a list: say *, a number or [name=VALUE]")
        same = value
    if len(same) > 1:
        raise RowError(f"--column {path}: there are {len(same)} entries, and the path takes one: say * for all of them")
    if not same:
        return None
    return _walk(same[0], rest, path)
