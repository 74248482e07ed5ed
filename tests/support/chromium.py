"""A real Chromium, and axe-core's judgement of the page that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from support.tools import missing, tool

try:
    from playwright.sync_api import expect as expect
    from playwright.sync_api import sync_playwright
except ImportError:
    expect = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# How long a page may take on a machine that does much beside it.
_PATIENCE_MS = 30_000
# Headless, and silent: it asks nobody for updates.
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PHONE = {"width": 375, "height": 667}
_GRAVE = ("serious", "critical")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of this machine. Without it, or without Playwright, the test is skipped or failed."""
    path = tool("chromium", "chromium")
    if expect is None:
        missing("Playwright cannot be imported")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        expect.set_options(timeout=_PATIENCE_MS)
        yield browser
        browser.close()


def grave_violations(page: Page) -> list[str]:
    """What axe-core finds serious or critical on the page, a line for each element."""
    try:
        axe = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    except ModuleNotFoundError as error:
        missing(f"axe-core is not installed: {error}")
    page.evaluate(axe)  # by the debugger: the page's own policy lets no script in
    found = cast("list[dict[str, Any]]", page.evaluate("axe.run().then((results) => results.violations)"))
    return [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found
        if each["impact"] in _GRAVE
        for node in each["nodes"]
    ]


def width_of(page: Page) -> int:
    """How wide the page is; above the width of the window it scrolls sideways."""
    return int(page.evaluate("document.documentElement.scrollWidth"))
