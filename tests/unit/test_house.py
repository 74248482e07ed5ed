"""The size of rooms and functions: a folder is read at a glance, and a function fits on a screen."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_FILES = 20
MOST_LINES = 60
# A function that is longer says why on its first line.
REASON = "# long: "
PRODUCT = sorted(
    path
    for folder in ("client", "server", "trainer", "deploy", "protos", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if "_pb2" not in path.name and "node_modules" not in path.parts
)


def test_no_folder_is_crowded() -> None:
    files = Counter(path.parent.relative_to(ROOT) for path in PRODUCT)
    assert {str(folder): count for folder, count in files.items() if count > MOST_FILES} == {}


@pytest.mark.parametrize("folder", ["client", "server", "trainer", "deploy", "protos", "docs"])
def test_no_function_is_longer_than_a_screen_without_a_reason(folder: str) -> None:
    long = []
    for path in PRODUCT:
        if path.relative_to(ROOT).parts[0] != folder:
            continue
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if length > MOST_LINES and REASON not in lines[node.lineno - 1]:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert long == []
