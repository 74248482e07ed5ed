"""The page of each top folder names every source file of its packages exactly once, in the table of the file's folder.

A cell of a table's header, or a bold first cell, names the folder of the rows below it with a slash at its end.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from support.documents import PRODUCT, ROOT, tracked

_FOLDER = re.compile(r"`([\w/]+)/`")
_FILE = re.compile(r"`(\w+\.(?:py|lua))`")
_WITHOUT_A_ROW = re.compile(r"/__init__\.py$|_pb2(_grpc)?\.py$")
_RULE = re.compile(r"\|[\s|:-]+\|")


def source_files(top: str) -> list[str]:
    """The source files of a top folder's packages, generated ones and ``__init__.py`` aside."""
    packages = {path.rsplit("/", 1)[0] for path in tracked() if path.startswith(f"{top}/rewardloop")}
    return [
        path
        for path in tracked()
        if path.rsplit("/", 1)[0] in packages and path.endswith((".py", ".lua")) and not _WITHOUT_A_ROW.search(path)
    ]


def named_files(top: str, page: str) -> Iterator[str]:
    """The files that the first cells of a page's tables name, each with its folder."""
    folders = {path.rsplit("/", 1)[0] for path in source_files(top)}
    lines, folder = page.splitlines(), ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("|"):
            folder = ""
            continue
        cell = line.split("|")[1].strip()
        if (found := _FOLDER.search(cell)) and (cell.startswith("**") or _RULE.fullmatch(following)):
            (folder,) = [each for each in folders if f"{each}/".endswith(f"/{found[1]}/")]
        elif folder:
            yield from (f"{folder}/{name}" for name in _FILE.findall(cell))


@pytest.mark.parametrize("top", PRODUCT)
def test_every_source_file_is_in_the_table_of_its_folder_once(top: str) -> None:
    named = list(named_files(top, (ROOT / top / "README.md").read_text(encoding="utf-8")))
    there = source_files(top)
    assert there
    assert sorted(set(there) - set(named)) == [], "the tables do not name these files"
    assert sorted(set(named) - set(there)) == [], "the tables name these files, which are not there"
    assert [name for name, count in Counter(named).items() if count > 1] == [], "the tables name these files twice"


def test_rows_belong_to_the_folder_above_them() -> None:
    table = "| file of `rewardloop_trainer/` | |\n| --- | --- |\n| `app.py` | |\n| **`reward/`** | |\n| `step.py` | |\n"
    page = f"| `daemon.py` | |\n\n{table}"
    assert list(named_files("trainer", page)) == [
        "trainer/rewardloop_trainer/app.py",
        "trainer/rewardloop_trainer/reward/step.py",
    ]
