"""The page Decide."""

from __future__ import annotations

from starlette.responses import Response

from rewardloop_console.navigation import DECIDE
from rewardloop_console.visits import Path, Visit


async def show(visit: Visit) -> Response:
    """Show the page."""
    return visit.page("decide.html")


PATHS = (Path("GET", "/decide", show, DECIDE),)
