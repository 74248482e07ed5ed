"""The wheel that the images install."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from support.tools import missing

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Files in the wheel, by the command of the Dockerfiles."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(directory), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if done.returncode != 0 and "hatchling" in done.stderr:
        missing(f"pip cannot get the build backend: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert (
            "rewardloop = rewardloop_cli.main:app"
            in archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt"))).decode()
        )
        return set(archive.namelist())


def test_the_wheel_has_every_file_of_every_package(names: set[str]) -> None:
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        root = (REPOSITORY / package).parent
        tracked = subprocess.run(
            ["git", "ls-files", package], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        files = {str((REPOSITORY / line).relative_to(root)) for line in tracked.stdout.splitlines()}
        assert files
        assert files <= names


def test_type_checkers_read_the_types_of_every_package(names: set[str]) -> None:
    packages = [Path(each).name for each in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    assert {f"{package}/py.typed" for package in packages} <= names


def test_the_wheel_has_the_protos_and_what_they_generate(names: set[str]) -> None:
    for proto in (REPOSITORY / "protos/rewardloop/v1").glob("*.proto"):
        stem = f"rewardloop/v1/{proto.stem}"
        assert {f"{stem}.proto", f"{stem}_pb2.py", f"{stem}_pb2.pyi"} <= names
    assert not [name for name in names if name.startswith(("tests/", "node_modules/"))]
