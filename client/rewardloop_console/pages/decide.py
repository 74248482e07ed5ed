"""The page Decide: promote, roll back, canary and shadow, each with a confirmation; and requests for erasure."""

from __future__ import annotations

import shlex

from starlette.responses import Response

from rewardloop.v1 import operations_pb2
from rewardloop_client import NotFound, RewardloopError, VersionInfo
from rewardloop_console.deciding import Decision, carry_out, consequences
from rewardloop_console.navigation import DECIDE
from rewardloop_console.refusals import Refusal
from rewardloop_console.visits import Path, Visit

_SHOWN = 20


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
    """Say how a person's signals are erased."""
    person = visit.query("id").strip()
    command = f"rewardloop feedback erase --annotator {shlex.quote(person)}" if person else ""
    return visit.page("decide/erasure.html", person=person, command=command)


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
)
