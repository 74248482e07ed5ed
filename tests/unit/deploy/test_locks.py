"""The locks in requirements/ hold all that their extras install, with hashes; the images install from them."""

from __future__ import annotations

import platform
import re
import runpy
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.deploy_files import DOCKERFILES, REPOSITORY, instructions

REQUIREMENTS = REPOSITORY / "requirements"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")
_LINE = re.compile(r"(?P<need>[\w.-]+==(?P<version>[^\s;]+)( ; .+?)?)( --hash=sha256:[0-9a-f]{64})+")


def _extras(dockerfile: Path) -> str:
    (default,) = (each.text for each in instructions(dockerfile) if each.name == "ARG" and "EXTRAS=" in each.text)
    return default.partition("=")[2]


LOCKS = {"dev": "local,test", "parity": "parity", **{path.stem: _extras(path) for path in DOCKERFILES}}


def _pins(lock: str, python: str) -> dict[str, str]:
    """Versions by name on Linux. Fails on a line that is not pinned, or has no hash."""
    text = (REQUIREMENTS / f"{lock}.txt").read_text().replace("\\\n", "")
    pins: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        found = _LINE.fullmatch(re.sub(r" +", " ", line))
        assert found is not None, line
        need = Requirement(found["need"])
        environment = {"python_full_version": python, "python_version": python[:4], "sys_platform": "linux"}
        if need.marker is None or need.marker.evaluate(environment):
            assert need.name not in pins, line
            pins[need.name] = found["version"]
    return pins


def _torch() -> str:
    (line,) = (each for each in (REQUIREMENTS / "torch.txt").read_text().splitlines() if not each.startswith("#"))
    return line.removeprefix("torch==")


def _needs(extras: str) -> list[Requirement]:
    """What pyproject.toml itself asks for, the extras within an extra included."""
    needs = [Requirement(text) for text in PROJECT["dependencies"]]
    waiting = extras.split(",")
    while waiting:
        for need in map(Requirement, PROJECT["optional-dependencies"][waiting.pop()]):
            if need.name == PROJECT["name"]:
                waiting += need.extras
            else:
                needs.append(need)
    return needs


def test_the_bill_of_materials_covers_every_lock() -> None:
    (loop,) = re.findall(r"^for lock in (.+); do$", (REQUIREMENTS / "sbom.sh").read_text(), re.MULTILINE)
    assert set(loop.split()) == set(LOCKS)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_takes_packages_from_its_lock_and_from_one_index(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    assert f"--no-deps --require-hashes -r /requirements/{dockerfile.stem}.txt" in text
    assert "extra-index-url" not in text


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_satisfies_what_its_extras_ask_for(lock: str, python: str) -> None:
    pins = _pins(lock, python)
    assert "torch" not in pins
    for need in _needs(LOCKS[lock]):
        version = _torch() if need.name == "torch" else pins.get(canonicalize_name(need.name))
        assert version is not None, f"{need} is not in {lock}.txt: make lock"
        assert need.specifier.contains(version), f"{need}, {lock}.txt has {version}: make lock"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_what_its_packages_need(lock: str) -> None:
    """By the metadata of what is installed as locked. torch's needs depend on its build, and come with it."""
    waiting, seen = _needs(LOCKS[lock]), set[str]()
    pins = _pins(lock, platform.python_version())
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if str(need) in seen or name == "torch":
            continue
        seen.add(str(need))
        assert name in pins, f"{need} is not in {lock}.txt: make lock"
        for more in map(Requirement, _metadata_needs(name, pins[name])):
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)):
                waiting.append(more)


def _metadata_needs(name: str, version: str) -> list[str]:
    try:
        return metadata.requires(name) or [] if metadata.version(name) == version else []
    except metadata.PackageNotFoundError:
        return []


def test_a_package_has_the_same_version_in_every_lock() -> None:
    for python in PYTHONS:
        merged: dict[str, str] = {}
        for lock in LOCKS:
            for name, version in _pins(lock, python).items():
                assert merged.setdefault(name, version) == version, name


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_installs_its_lock_before_its_wheel(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    (copied,) = (each.text for each in steps if each.name == "COPY" and each.text.endswith(" /requirements/"))
    assert f"requirements/{dockerfile.stem}.txt" in copied.split()
    (install,) = (each.text for each in steps if "/opt/rewardloop/bin/pip install" in each.text)
    locked, *_, wheel = (each for each in install.split("&&") if "pip install" in each)
    assert f"--no-deps --require-hashes -r /requirements/{dockerfile.stem}.txt" in locked
    assert "/wheels/*.whl" in wheel


def test_no_torch_reaches_the_server_images() -> None:
    for lock in ("server", "server-cuda"):
        assert "torch" not in {need.name for need in _needs(LOCKS[lock])}


@pytest.mark.parametrize(
    ("installed", "stays"),
    [("2.10.1", False), ("2.11.0+cu130", True), ("2.12.0a0+nv26.5", True), ("2.15.0", True), ("3.0.0", False)],
)
def test_a_torch_within_our_range_stays(
    installed: str, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / f"torch-{installed}.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {installed}\n")
    monkeypatch.syspath_prepend(tmp_path)
    main = runpy.run_path(str(REQUIREMENTS / "torch_fits.py"))["main"]
    assert main() == (0 if stays else 1)
