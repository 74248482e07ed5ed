"""The page Decide: promote, roll back, canary and shadow, each with a confirmation; and requests for erasure."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from rewardloop.v1 import operations_pb2
from rewardloop_client import NotFound, RewardloopError, VersionInfo
from rewardloop_console.deciding import Decision, carry_out, consequences
from rewardloop_console.erasing import Person, progress_of
from rewardloop_console.navigation import DECIDE
from rewardloop_console.refusals import Refusal
from rewardloop_console.visits import Path, Visit

_SHOWN = 20
_LONGEST_PAUSE_S = 30


async def show(visit: Visit) -> Response:
    """Show the models with their versions."""
    status = await visit.client.operations.status()
    versions: dict[str, list[VersionInfo]] = {}
    for model in status.models:
        try:
            versions[model.model] = (await visit.client.list_versions(model.model))[:_SHOWN]
        except RewardloopError:  # such as no policy worker: the others can be decided about
            versions[model.model] = []
    return visit.page("decide.html", models=status.models, versions=versions, done=visit.query("done"))


async def confirm(visit: Visit) -> Response:
    """Say what a decision does, and ask for it."""
    decision = Decision.of(dict(visit.request.query_params))
    status = await _status(visit, decision.model)
    version = None
    if decision.version:
        try:
            version = await visit.client.get_version(decision.model, decision.version)
        except NotFound as error:
            raise Refusal(404, f"There is no version {decision.version} of {decision.model}.") from error
    return visit.page(
        "decide/confirm.html",
        decision=decision,
        version=version,
        live=status.active_version,
        consequences=consequences(decision, status, version),
    )


async def decide(visit: Visit) -> Response:
    """Carry a decision out."""
    decision = Decision.of(dict(visit.form))
    await carry_out(visit.client, decision, visit.session.person)
    return visit.to(f"/decide?done={decision.action}")


async def erasure(visit: Visit) -> Response:
    """Ask whose signals are to be erased."""
    return visit.page("decide/erasure.html", person=Person(visit.query("id"), visit.query("caller") or None))


async def taught(visit: Visit) -> Response:
    """Show which versions learned from a person, and ask for the erasure. Nothing is erased."""
    person = Person.of(visit.form)
    found = await person.taught(visit.client)
    # A POST, so that no address, and so no log of a proxy, names the person.
    values: dict[str, Any] = {"person": person, "taught": found, "pause_s": _longer(visit.form.get("pause", ""))}
    if visit.is_partial:
        return visit.part("decide/taught_part.html", **values)
    return visit.page("decide/taught.html", **values)


async def erase(visit: Visit) -> Response:
    """Begin an erasure."""
    begun = await Person.of(visit.form).erase(visit.client, visit.form.get("again", ""))
    return visit.to(f"/decide/erasure/progress?erasure={quote(begun.erasure_id)}")


async def progress(visit: Visit) -> Response:
    """Show how far an erasure has come."""
    found = await progress_of(visit.client, visit.query("erasure"))
    values: dict[str, Any] = {"progress": found, "pause_s": _longer(visit.query("pause"))}
    if visit.is_partial:
        return visit.part("decide/progress_part.html", **values)
    return visit.page("decide/progress.html", **values)


def _longer(pause: str) -> int:
    """Return the seconds after which the page asks again: each time twice as long, because every call is audited."""
    return min(_LONGEST_PAUSE_S, 2 * int(pause)) if pause.isascii() and pause.isdigit() and len(pause) < 4 else 1


async def _status(visit: Visit, model: str) -> operations_pb2.ModelStatus:
    for each in (await visit.client.operations.status()).models:
        if each.model == model:
            return each
    raise Refusal(404, "There is no model of this name.")


PATHS = (
    Path("GET", "/decide", show, DECIDE),
    Path("GET", "/decide/confirm", confirm, DECIDE),
    Path("POST", "/decide", decide, DECIDE),
    Path("GET", "/decide/erasure", erasure, DECIDE),
    Path("POST", "/decide/erasure/taught", taught, DECIDE),
    Path("POST", "/decide/erasure", erase, DECIDE),
    Path("GET", "/decide/erasure/progress", progress, DECIDE),
)
