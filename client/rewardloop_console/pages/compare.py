"""The page Compare."""

from __future__ import annotations

from starlette.responses import Response

from rewardloop_console.navigation import COMPARE
from rewardloop_console.visits import Path, Visit


async def show(visit: Visit) -> Response:
    """Show the page."""
    return visit.page("compare.html")


PATHS = (Path("GET", "/compare", show, COMPARE),)
