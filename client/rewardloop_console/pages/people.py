"""The page People."""

from __future__ import annotations

from starlette.responses import Response

from rewardloop_console.navigation import PEOPLE
from rewardloop_console.visits import Path, Visit


async def show(visit: Visit) -> Response:
    """Show the page."""
    return visit.page("people.html")


PATHS = (Path("GET", "/people", show, PEOPLE),)
