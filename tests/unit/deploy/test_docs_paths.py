"""The pages beside the documentation's own name only files, tests and commands that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from support.command_lines import command_lines
from support.documents import ROOT, pages, tracked

from rewardloop.process.process_table import PROCESSES
from rewardloop.process.setting_names import settings_of
from rewardloop_cli.main import app

# The tests of docs/ read the commands of the documentation's own pages. A changelog names what was.
PAGES = [ROOT / path for path in tracked() if path.endswith(".md") and path != "CHANGELOG.md"]
BESIDE_THE_DOCUMENTATION = [page for page in PAGES if page not in pages()]

_FOLDERS = "protos|client|server|trainer|deploy|tests|requirements|docs"
_PATH = re.compile(rf"(?<![\w/.-])((?:{_FOLDERS})/[\w./*-]*[\w*])(?:::(\w+))?")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_FILE = re.compile(r"[\w./*-]*\w\.(?:py|proto|lua|Dockerfile|ya?ml)")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def _test_names(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"^(?:async )?def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def _missing_paths(page: Path) -> Iterator[str]:
    for path, test in _PATH.findall(page.read_text(encoding="utf-8")):
        found = [each for each in (*ROOT.glob(path), *page.parent.glob(path)) if each.exists()]
        if not found:
            yield path
        elif test and not any(test in _test_names(each) for each in found):
            yield f"{path}::{test}"


def _missing_files(page: Path) -> Iterator[str]:
    """Source files that a span of code names and that are nowhere: a page may name a file by the end of its path."""
    for span in _SPAN.findall(page.read_text(encoding="utf-8")):
        for word in re.split(r"[\s,]+", span):
            if _FILE.fullmatch(word) and not _is_somewhere(word):
                yield word


def _is_somewhere(name: str) -> bool:
    ending = re.compile(rf"(?:^|/){re.escape(name.removeprefix('./')).replace(re.escape('*'), '[^/]*')}$")
    return any(ending.search(path) for path in tracked())


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    assert sorted(set(_missing_paths(page))) == []


@pytest.mark.parametrize("page", BESIDE_THE_DOCUMENTATION, ids=_name)
def test_every_source_file_that_a_page_names_exists(page: Path) -> None:
    assert sorted(set(_missing_files(page))) == []


def _unknown_flags(words: Sequence[str]) -> list[str]:
    """The flags of a command line of rewardloop that its command does not have."""
    command: Any = typer.main.get_command(app)
    flags, taken = {"--help"}, ""
    for word in ("", *words[1:]):
        found = getattr(command, "commands", {}).get(word)
        taken = f"{taken} {word}".strip() if found is not None else taken
        command = found or command
        flags |= {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    # `config show` takes the flags of the process that it is asked about.
    name = words[3] if words[1:3] == ["config", "show"] and len(words) > 3 else taken
    process = next((each for each in PROCESSES if each.name == name), None)
    if process is not None:
        flags |= {"--config", "--help-all", *(("--json", "--changed") if name != taken else ())}
        for setting in settings_of(process.settings_class()):
            flags |= set(re.findall(r"--[\w.-]+", setting.flags))
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in flags]


@pytest.mark.parametrize("page", BESIDE_THE_DOCUMENTATION, ids=_name)
def test_every_command_that_a_page_names_has_the_flags_that_it_names(page: Path) -> None:
    lines = [" ".join(words) for words in command_lines(page)]
    commands = [part.split() for line in lines for part in re.split(r"\s*[;|&]\s*", line)]
    assert [flag for words in commands if words[:1] == ["rewardloop"] for flag in _unknown_flags(words)] == []


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("rewardloop train --reward.learning-rate 2e-5 --config train.toml", []),
        ("rewardloop serve --no-spin --spinning", ["--spinning"]),
        ("rewardloop models canary --end --start", ["--start"]),
        ("rewardloop config show serve --changed --spinning", ["--spinning"]),
        ("rewardloop serve --changed", ["--changed"]),
        ("rewardloop --token-file token status", []),
    ],
)
def test_a_flag_that_a_command_does_not_have_is_found(line: str, unknown: list[str]) -> None:
    assert _unknown_flags(line.split()) == unknown


def test_a_path_a_test_and_a_file_that_do_not_exist_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`tests/unit/gone.py` `tests/unit/deploy/test_docs_paths.py::test_gone` `gone.py` `up.py` deploy/*/up.py"
    )
    assert list(_missing_paths(page)) == ["tests/unit/gone.py", "tests/unit/deploy/test_docs_paths.py::test_gone"]
    assert list(_missing_files(page)) == ["tests/unit/gone.py", "gone.py"]
