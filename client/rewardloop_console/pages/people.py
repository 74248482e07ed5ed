"""The page People: who gives signals, how far they agree, who is flagged, and who is muted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from rewardloop.v1 import operations_pb2
from rewardloop_console.navigation import PEOPLE
from rewardloop_console.visits import Path, Visit

_ADMIN = frozenset({"admin"})
_SHOWN = 200

# The orders in which people are shown, by the name in the address.
_ORDERS: Mapping[str, Callable[[operations_pb2.Person], Any]] = {
    "signals": lambda each: -each.signals,
    "reliability": lambda each: each.reliability if each.HasField("reliability") else 2.0,
    "agreement": lambda each: each.agreement if each.HasField("agreement") else 2.0,
    "flags": lambda each: -len(each.flags),
}


async def show(visit: Visit) -> Response:
    """Show the page."""
    crowd = await visit.client.operations.people()
    wanted, order = visit.query("find").strip(), visit.query("by", "flags")
    people = [each for each in crowd.people if wanted.lower() in each.annotator_id.lower()]
    people.sort(key=_ORDERS.get(order, _ORDERS["flags"]))
    people.sort(key=lambda each: not each.HasField("mute"))
    return visit.page(
        "people.html",
        crowd=crowd,
        people=people[:_SHOWN],
        left_out=max(0, len(people) - _SHOWN),
        find=wanted,
        by=order if order in _ORDERS else "flags",
        orders=list(_ORDERS),
    )


async def ask(visit: Visit) -> Response:
    """Ask whether somebody is to be muted, or heard again."""
    caller, annotator = visit.query("caller"), visit.query("id")
    crowd = await visit.client.operations.people()
    found = [each for each in crowd.people if (each.caller, each.annotator_id) == (caller, annotator)]
    person = found[0] if found else operations_pb2.Person(caller=caller, annotator_id=annotator)
    return visit.page("people/mute.html", person=person)


async def decide(visit: Visit) -> Response:
    """Mute somebody, or hear them again."""
    form = visit.form
    reason = form.get("reason", "").strip()
    await visit.client.operations.set_muted(
        form.get("id", ""),
        form.get("muted") == "yes",
        caller=form.get("caller", ""),
        reason=f"{visit.session.person}: {reason}" if reason else visit.session.person,
    )
    return visit.to("/people")


PATHS = (
    Path("GET", "/people", show, PEOPLE),
    Path("GET", "/people/mute", ask, PEOPLE, _ADMIN),
    Path("POST", "/people/mute", decide, PEOPLE, _ADMIN),
)
