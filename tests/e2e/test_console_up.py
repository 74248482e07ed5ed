"""Somebody labels in a real Chromium against a real `rewardloop up`, and the ledger has what was said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.chromium import chromium, expect
from support.deployments_with_http import HttpDeployment, http_deployment

from rewardloop_client import NewTask, RewardloopClient
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.long

PATIENCE_S = 90.0
PAIRS = 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def test_twenty_pairs_of_a_signed_in_person_are_in_the_ledger(browser: Browser, tmp_path: Path) -> None:
    with http_deployment(tmp_path) as up, RewardloopClient(up.grpc, token=up.tokens["operators"]) as client:
        tasks = [NewTask(("choice",), f"Question {i}?", (f"answer {i}", f"other {i}")) for i in range(PAIRS)]
        tasks += [NewTask(("ranking",), "Which order?", ("a", "b", "c"))]
        client.labelling.add_tasks("shop", tasks, import_id="i")
        version = client.labelling.set_guidelines("shop", "# Be true")
        page = browser.new_page()
        page.goto(f"{up.url}/console/")
        page.get_by_label("Token").fill(up.tokens["anna"])
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="shop", exact=True).click()
        page.wait_for_url("**/console/label/shop")
        expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Label"])
        for done in range(PAIRS + 1):
            is_pair = page.locator("#task").get_attribute("data-mode") == "choice"
            page.wait_for_timeout(300)
            for key in ("2",) if is_pair else ("3", "1", "Enter"):
                page.keyboard.press(key)
            page.wait_for_function(
                "count => document.getElementById('count').textContent.startsWith(`${count} `)", arg=done + 1
            )
        page.keyboard.press("u")
        page.get_by_text("Taken back.").wait_for()
        assert page.goto(f"{up.url}/console/watch").status == 403
        page.close()
        answers = list(client.labelling.answers("shop"))
        kept = _archived(up, len(answers))
    assert len(answers) == PAIRS
    assert {row.event.annotator_id for row in kept} == {"anna"}
    assert {row.event.guideline_version for row in kept} == {version}
    by_prompt = {row.event.prompt.text: row for row in kept}
    for given in answers:
        event = by_prompt[given.prompt.text].event
        assert list(event.display_order) == list(given.display_order)
        if given.verdict.WhichOneof("verdict") == "choice":
            assert event.choice.chosen == given.display_order[1]


def _archived(up: HttpDeployment, count: int) -> list[Recorded]:
    """The rows of the ledger, once it has those of so many answers and forgotten what was taken back."""
    directory = up.directory / "data" / "ledger"
    deadline = time.monotonic() + PATIENCE_S
    rows: list[Recorded] = []
    while time.monotonic() < deadline:
        if directory.exists():
            rows = list(Ledger(directory, writable=False).scan())
        if len(rows) == count:
            return rows
        time.sleep(0.5)
    raise AssertionError(f"{len(rows)} rows in the ledger, not {count}: {up.log_path.read_text()}")
