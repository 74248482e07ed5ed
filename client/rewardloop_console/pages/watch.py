"""The page Watch."""

from __future__ import annotations

from starlette.responses import Response

from rewardloop_console.navigation import WATCH
from rewardloop_console.visits import Path, Visit


async def show(visit: Visit) -> Response:
    """Show the page."""
    return visit.page("watch.html")


PATHS = (Path("GET", "/watch", show, WATCH),)
