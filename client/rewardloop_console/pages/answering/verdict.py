"""Reads what a labeller has sent as a verdict, and says a verdict in words."""

from __future__ import annotations

from rewardloop.v1 import labelling_pb2
from rewardloop_client import RewardloopError, Verdict
from rewardloop_console.forms import Form
from rewardloop_console.refusals import Refusal

REASONS = (
    "The prompt is unclear",
    "All responses are bad",
    "I do not know the subject",
    "Not a language that I read",
    "Harmful content",
    "Broken or empty text",
)
# The order in which responses are shown is random. It is a judgement only once a person has said that it is theirs.
_UNRANKED = "You have moved nothing. Move the responses, or say that the order shown is yours."
# Form values that are not numbers are refused by this.
_UNREADABLE = "The answer cannot be read. Load the page again."


def verdict_of(form: Form) -> labelling_pb2.Verdict:
    """Return the verdict of a form. Raises Refusal if it is none; the services check its content."""
    kind, _, rest = form.get("verdict", "").partition(":")
    try:
        match kind:
            case "choice":
                chosen = int(rest)
                return Verdict.choice(chosen, 1 - chosen)
            case "tie":
                return Verdict.tie()
            case "ranking":
                order = rest or form.get("order", "")
                if not order:
                    raise Refusal(400, _UNRANKED)
                return Verdict.ranking([int(index) for index in order.split(",")])
            case "rating":
                grades = _grades(form)
                if not grades:
                    raise Refusal(400, "Give at least one grade.")
                return Verdict.ratings(grades)
            case "edit":
                return Verdict.edit(_unix_lines(form.get("edited_text", "")), response=int(form.get("edited", "0")))
            case "skip":
                return Verdict.skip(form.get("reason", "").strip())
    except (ValueError, RewardloopError) as error:
        raise Refusal(400, _UNREADABLE) from error
    raise Refusal(400, _UNREADABLE)


def seconds_of(form: Form) -> float | None:
    """Return how long the labeller took, or None if the page has not measured it."""
    try:
        seconds = float(form.get("seconds", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds <= 86_400 else None


def in_words(verdict: labelling_pb2.Verdict) -> str:
    """Return what a labeller had said, for the person who takes it back."""
    match verdict.WhichOneof("verdict"):
        case "choice":
            return f"Response {verdict.choice.chosen + 1} is better"
        case "tie":
            return "Both are equally good"
        case "ranking":
            return "Order " + ", ".join(str(index + 1) for index in verdict.ranking.order)
        case "ratings":
            return ", ".join(f"response {each.response + 1}: {each.value:g}" for each in verdict.ratings.ratings)
        case "edit":
            return f"Response {verdict.edit.response + 1} was edited"
        case "skip":
            return f"Skipped: {verdict.skip.reason}"
    return ""


def _grades(form: Form) -> dict[int, float]:
    """Return the grades by the index of their candidate. A candidate without one is left out."""
    named = [(name.removeprefix("grade-"), value) for name, value in form.items() if name.startswith("grade-")]
    return {int(index): float(value) for index, value in named if value.strip()}


def _unix_lines(text: str) -> str:
    """Return a text with the line ends of the response, which a browser turns into CR LF when it sends a form."""
    return text.replace("\r\n", "\n")
