"""What the documentation shows can be done as it stands: Python runs, and command lines are read without an error."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command_lines import check, check_process, command_lines
from support.documents import ROOT, blocks, pages

import rewardloop_client
from rewardloop_client.fake import FakeRewardloop

PAGES = pages()
_MOST_UNRUN = 3


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRewardloop:
    """The server that clients of a snippet talk to: it answers by the contract's rules, in memory."""
    fake = FakeRewardloop(
        generate=lambda prompt, index: f"{prompt} {'indeed ' * (index + 1)}",
        models={"product": lambda prompt, response: float(len(response))},
    )
    clients: dict[str, Callable[[], Any]] = {"RewardloopClient": lambda: fake, "AsyncRewardloopClient": fake.as_async}
    for name, make in clients.items():
        signature = inspect.signature(getattr(rewardloop_client, name))

        def client(*args: Any, _signature: Any = signature, _make: Any = make, **kwargs: Any) -> Any:
            _signature.bind(*args, **kwargs)  # what the real client does not take is an error here, too
            return _make()

        monkeypatch.setattr(rewardloop_client, name, client)
    return fake


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=_name)
def test_python_of_a_page_runs_from_top_to_bottom(
    page: Path, fake: FakeRewardloop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python" and not block.reason:
            source = "\n" * (block.line - 1) + block.code  # errors name the page's own lines
            exec(compile(source, str(page), "exec"), names)


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    unrun = [block for page in PAGES for block in blocks(page) if block.reason]
    assert len(unrun) <= _MOST_UNRUN, [str(block) for block in unrun]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_command_lines_are_read_without_an_error(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in command_lines(page):
        if words[0] == "rewardloop" and "COMMAND" not in words:
            check(words)
        elif words[0] == "torchrun":
            module = words.index("-m")
            check_process(words[module + 1], words[module + 2 :])


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_scripts_tests_and_targets_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    missing = []
    for words in command_lines(page):
        if words[0] == "make":
            missing += [word for word in words[1:] if re.fullmatch(r"[a-z-]+", word) and word not in targets]
        elif words[0] in ("pytest", "python"):
            missing += [word for word in words[1:] if word.startswith("tests/") and not (ROOT / word).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", text)
    # Pages of the reference are made when the site is built, which checks the links to them.
    made = ROOT / "docs" / "reference"
    found = [target for target in targets if (page.parent / target).resolve().parent != made]
    assert [target for target in found if not (page.parent / target).exists()] == []
