"""The page Watch: versions, what each model waits for, alerts, rounds with their curves, and dead letters."""

from __future__ import annotations

from starlette.responses import Response

from rewardloop_console.navigation import WATCH
from rewardloop_console.refusals import Refusal
from rewardloop_console.visits import Path, Visit

_ADMIN = frozenset({"admin"})
_ROUNDS, _LETTERS = 30, 20


async def show(visit: Visit) -> Response:
    """Show the page, or for htmx the part of it that changes by itself."""
    operations = visit.client.operations
    status = await operations.status()
    rounds = await operations.rounds(count=_ROUNDS)
    if visit.is_partial:
        return visit.part("watch/live.html", status=200, found=status, rounds=rounds)
    return visit.page("watch.html", found=status, rounds=rounds)


async def show_round(visit: Visit) -> Response:
    """Show one round with its curves, its verdict, and examples of why it was refused."""
    parameters = visit.request.path_params
    try:
        number = int(parameters["number"])
    except ValueError as error:
        raise Refusal(404, "There is no such round.") from error
    found = await visit.client.operations.round(parameters["model"], parameters["trainer"], number)
    return visit.page("watch/round.html", round=found)


async def letters(visit: Visit) -> Response:
    """Show dead letters."""
    found = await visit.client.operations.dead_letters(after=visit.query("after"), count=_LETTERS)
    done = {"requeued": "The signal is in the stream again.", "dropped": "The letter was discarded."}
    return visit.page(
        "watch/letters.html",
        letters=found.letters,
        total=found.total,
        more=found.letters[-1].letter_id if len(found.letters) == _LETTERS else "",
        notice=done.get(visit.query("done"), ""),
    )


async def requeue(visit: Visit) -> Response:
    """Put a dead letter back into the stream."""
    await visit.client.operations.requeue_dead_letter(visit.form.get("letter", ""))
    return visit.to("/watch/letters?done=requeued")


async def drop(visit: Visit) -> Response:
    """Discard a dead letter, once the person has said so twice."""
    if visit.form.get("sure") != "yes":
        return visit.page("watch/drop.html", letter=visit.form.get("letter", ""))
    await visit.client.operations.drop_dead_letter(visit.form.get("letter", ""))
    return visit.to("/watch/letters?done=dropped")


PATHS = (
    Path("GET", "/watch", show, WATCH),
    Path("GET", "/watch/rounds/{model}/{trainer}/{number}", show_round, WATCH),
    Path("GET", "/watch/letters", letters, WATCH),
    Path("POST", "/watch/letters/requeue", requeue, WATCH, _ADMIN),
    Path("POST", "/watch/letters/drop", drop, WATCH, _ADMIN),
)
