"""The page Compare: versions side by side on the same prompts, and the reports of evaluations, audits and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.responses import HTMLResponse, Response

from rewardloop.formats.mixing.names import POLICY
from rewardloop_client import RewardloopError, VersionInfo
from rewardloop_console.comparing import MOST_PROMPTS, ask_policies, compare_rewards, prompts_of
from rewardloop_console.navigation import COMPARE
from rewardloop_console.visits import Path, Visit

# Pinned requests may name versions in these states; others are not in memory.
_IN_MEMORY = frozenset({"active", "canary", "shadow", "warm", "unspecified"})

# A report is somebody else's page: it runs nothing, loads nothing, and has no origin of its own.
_REPORT = {
    "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'self'",
    "x-frame-options": "SAMEORIGIN",
}


async def show(visit: Visit) -> Response:
    """Show what can be compared, and the reports."""
    versions = await _versions(visit)
    return visit.page(
        "compare.html",
        versions=_in_memory(versions),
        reports=await visit.client.operations.reports(),
        most=MOST_PROMPTS,
        prompts="",
        chosen=(),
    )


async def policies(visit: Visit) -> Response:
    """Let the chosen policies answer the prompts."""
    form = visit.form
    chosen, text = form.all("version"), form.get("prompts", "")
    scored = visit.may("score")
    asked = await ask_policies(visit.client, prompts_of(text), chosen, scored=scored)
    return visit.page("compare/policies.html", asked=asked, versions=chosen, scored=scored)


async def rewards(visit: Visit) -> Response:
    """Let two versions of a reward model score the live policy's answers."""
    form = visit.form
    model, one, other = form.get("model", ""), form.get("one", ""), form.get("other", "")
    found = await compare_rewards(visit.client, prompts_of(form.get("prompts", "")), model, one, other)
    return visit.page("compare/rewards.html", found=found, model=model, one=one, other=other)


async def report(visit: Visit) -> Response:
    """Show a report within the console."""
    found = await visit.client.operations.report(visit.request.path_params["report"])
    return visit.page("compare/report.html", report=found.report)


async def report_page(visit: Visit) -> Response:
    """Return the report's own page, for the frame."""
    found = await visit.client.operations.report(visit.request.path_params["report"])
    return HTMLResponse(found.page, headers=_REPORT)


async def _versions(visit: Visit) -> dict[str, list[VersionInfo]]:
    """Return the versions of each model; none of a model whose server does not answer."""
    found: dict[str, list[VersionInfo]] = {}
    for model in await visit.client.models():
        try:
            found[model] = await visit.client.list_versions(model)
        except RewardloopError:  # such as no policy worker: the page shows the other models
            found[model] = []
    return found


def _in_memory(versions: Mapping[str, Sequence[VersionInfo]]) -> dict[str, list[VersionInfo]]:
    """Return the versions that may be asked, the policy's under its own name."""
    return {model: [each for each in known if each.state in _IN_MEMORY] for model, known in versions.items()}


_ASKING = frozenset({"generate"})

PATHS = (
    Path("GET", "/compare", show, COMPARE),
    Path("POST", f"/compare/{POLICY}", policies, COMPARE, _ASKING),
    Path("POST", "/compare/rewards", rewards, COMPARE, _ASKING),
    Path("GET", "/compare/reports/{report}", report, COMPARE),
    Path("GET", "/compare/reports/{report}/page", report_page, COMPARE),
)
