"""The size of rooms and functions, and that import-linter's contracts see every room and every import.

A folder is read at a glance, and a function fits on a screen.
"""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# What imports a module that a text names, which import-linter does not see.
IMPORTERS = frozenset(("import_module", "__import__", "run_module", "spec_from_file_location"))
# The files that may: each looks a process or an algorithm up in a table, and imports it when it is asked for.
IMPORT_BY_NAME = {
    "client/rewardloop_cli/processes.py",
    "protos/rewardloop/process/process_table.py",
    "trainer/rewardloop_trainer/policy/online/algorithms.py",
}


def test_no_folder_is_crowded() -> None:
    files = Counter(path.parent.relative_to(ROOT) for path in PRODUCT)
    assert {str(folder): count for folder, count in files.items() if count > MOST_FILES} == {}


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports a test file by its name alone, so that it refuses the second of two that share one."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name, count in names.items() if count > 1} == set()


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


def test_every_package_is_in_the_contract_of_the_packages() -> None:
    linter = PROJECT["tool"]["importlinter"]
    shipped = {Path(path).name for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    found = {path.parent.name for path in PRODUCT if path.name == "__init__.py" and len(_folders(path)) == 2} - {"docs"}
    packages = found - {"reference_pages"}  # makes pages of the documentation, and nothing imports it
    assert shipped <= packages
    assert set(linter["root_packages"]) == packages
    assert set(_layers(_contract("packages"))) == packages


def test_every_folder_of_a_package_is_in_an_exhaustive_contract() -> None:
    with_folders = {
        _folders(path)[1]
        for path in PRODUCT
        if path.name == "__init__.py" and len(_folders(path)) > 2 and "reference_pages" not in path.parts
    }
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    exhaustive = {root for each in contracts if each.get("exhaustive") for root in each["containers"]}
    assert with_folders <= exhaustive
    assert not any(each.get("exhaustive_ignores") for each in contracts)


def test_no_code_imports_by_a_text_but_the_tables_that_are_listed() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in PRODUCT
        for name in _called(ast.parse(path.read_text(encoding="utf-8")))
        if name in IMPORTERS
    }
    assert found == IMPORT_BY_NAME


def _folders(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).parent.parts


def _contract(name: str) -> dict[str, Any]:
    (contract,) = (each for each in PROJECT["tool"]["importlinter"]["contracts"] if each["name"] == name)
    return contract


def _layers(contract: dict[str, Any]) -> Iterator[str]:
    for line in contract["layers"]:
        yield from (name.strip() for name in line.split("|"))


def _called(tree: ast.AST) -> Iterator[str]:
    """The last names of everything that is called, and of what is imported to be called under another name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        elif isinstance(node, ast.ImportFrom):
            yield from (each.name for each in node.names)
