"""The page Label."""

from __future__ import annotations

from starlette.responses import Response

from rewardloop_console.navigation import LABEL
from rewardloop_console.visits import Path, Visit


async def show(visit: Visit) -> Response:
    """Show the page."""
    return visit.page("label.html")


PATHS = (Path("GET", "/label", show, LABEL),)
