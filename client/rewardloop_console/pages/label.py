"""The page Label: a person gets a task, answers it, and gets the next one."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import RedirectResponse, Response

from rewardloop_client import (
    Guidelines,
    LabellingTask,
    LeaseAnswered,
    NothingToUndo,
    Offer,
    TaskRetracted,
    TaskTaken,
    UnknownLease,
)
from rewardloop_console.markdown import rendered
from rewardloop_console.navigation import LABEL
from rewardloop_console.pages.answering.shown import Said, shown
from rewardloop_console.pages.answering.verdict import REASONS, seconds_of, verdict_of
from rewardloop_console.refusals import Refusal, sentence_of
from rewardloop_console.visits import Path, Visit

# An answer that fails so can never be recorded: the page says it, and goes on to the next task.
_LOST = (LeaseAnswered, TaskTaken, TaskRetracted, UnknownLease)
_NOTHING_SAID = Said()


async def projects(visit: Visit) -> Response:
    """Show the projects, with what this person has done and what is open."""
    found = await visit.client.labelling.progress(labeller=visit.session.annotator_id)
    return visit.page("label.html", projects=found)


async def task(visit: Visit) -> Response:
    """Show the person's task of a project."""
    project = visit.request.path_params["project"]
    offer = await visit.client.labelling.next_task(project, labeller=visit.session.annotator_id)
    return visit.page("label_project.html", **await _values(visit, project, offer, _NOTHING_SAID, known=None))


async def answer(visit: Visit) -> Response:
    """Record an answer, and show the next task."""
    project, labelling = visit.request.path_params["project"], visit.client.labelling
    message = ""
    try:
        await labelling.answer(
            project,
            visit.form.get("lease", ""),
            verdict_of(visit.form),
            labeller=visit.session.annotator_id,
            seconds=seconds_of(visit.form),
            guideline_version=visit.form.get("guideline_version", ""),
            comment=visit.form.get("comment", "").strip(),
        )
    except _LOST as error:
        message = f"Your answer was not recorded. {sentence_of(error)}"
    return await _next(visit, project, message)


async def undo(visit: Visit) -> Response:
    """Take the person's last answer back, and show its task again."""
    project = visit.request.path_params["project"]
    try:
        undone = await visit.client.labelling.undo(project, labeller=visit.session.annotator_id)
    except NothingToUndo:
        raise Refusal(409, "There is no answer of yours to take back.") from None
    if not _is_part(visit):
        return _back(project)
    offer = await visit.client.labelling.next_task(project, labeller=visit.session.annotator_id)
    said = Said.of(undone.verdict, undone.comment)
    if offer.task is None or offer.task.task_id != undone.task.task_id:
        offer = Offer(undone.task, None, undone.answered, offer.left)
    return visit.part("label_part.html", message="", **await _values(visit, project, offer, said, known=_seen(visit)))


async def _next(visit: Visit, project: str, message: str) -> Response:
    if not _is_part(visit):
        if message:
            raise Refusal(409, message)
        return _back(project)
    offer = await visit.client.labelling.next_task(project, labeller=visit.session.annotator_id)
    values = await _values(visit, project, offer, _NOTHING_SAID, known=_seen(visit))
    return visit.part("label_part.html", message=message, **values)


async def _values(visit: Visit, project: str, offer: Offer, said: Said, known: str | None) -> dict[str, Any]:
    """Return what the templates take. ``known`` is the version of the guidelines that the page shows already."""
    guidelines = await _guidelines(visit, project, offer.task, known)
    task = None if offer.task is None else await asyncio.to_thread(shown, offer.task, said)
    html = None if guidelines is None else await asyncio.to_thread(rendered, guidelines.text)
    return {
        "project": project,
        "offer": offer,
        "shown": task,
        "guidelines": guidelines,
        "guidelines_html": html,
        "reasons": REASONS,
    }


async def _guidelines(visit: Visit, project: str, task: LabellingTask | None, known: str | None) -> Guidelines | None:
    """Return the guidelines under which the task is answered, or None if the page shows them already."""
    if known is not None and (task is None or task.guideline_version == known):
        return None
    if task is not None and not task.guideline_version:
        return Guidelines("", "")
    version = "" if task is None else task.guideline_version
    return await visit.client.labelling.guidelines(project, version=version)


def _seen(visit: Visit) -> str:
    return visit.form.get("guideline_version", "")


def _is_part(visit: Visit) -> bool:
    """Return whether the page's own script asks, which puts the answer in place; else a form was sent without it."""
    return visit.request.headers.get("x-part") == "true"


def _back(project: str) -> Response:
    return RedirectResponse(f"{LABEL.path}/{project}", 303)


PATHS = (
    Path("GET", "/label", projects, LABEL),
    Path("GET", "/label/{project}", task, LABEL),
    Path("POST", "/label/{project}/answer", answer, LABEL),
    Path("POST", "/label/{project}/undo", undo, LABEL),
)
