"""What a revision says, as ordinary signals with the source llm_judge: an edit, and a preference for each change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from rewardloop.formats.messages import prompt_of
from rewardloop.v1 import feedback_pb2
from rewardloop_client import Feedback
from rewardloop_client._feedback import Context
from rewardloop_trainer.judging.constitution import Constitution
from rewardloop_trainer.judging.pairs.candidates import tags_of
from rewardloop_trainer.judging.revision import Revised


def signals_of(revised: Revised, model: str, constitution: Constitution) -> Iterator[feedback_pb2.FeedbackEvent]:
    """Yield one edit from the first answer to the last, if it was changed, and a preference for each changed round.

    An edit whose revisions the model itself does not prefer, by the principle of any of them, is left out: a preference
    against it says so.
    """
    about = _about(revised, model, constitution)
    preferences = [step.preference for step in revised.steps if step.outcome == "changed"]
    is_worse = any(each is not None and each.choice == "first" for each in preferences)
    if revised.changed_by and revised.last != revised.first and not is_worse:
        yield Feedback.edit(edited_text=revised.last, response=0, **about([revised.first], "edit", *revised.changed_by))
    for number, step in enumerate(revised.steps):
        if step.preference is None:
            continue
        context = about([step.before, step.after], f"preference-{number}", step.principle.id)
        if step.preference.choice == "tie":
            yield Feedback.tie(first=0, second=1, **context)
        else:
            chosen = 0 if step.preference.choice == "first" else 1
            yield Feedback.choice(chosen=chosen, rejected=1 - chosen, **context)


class _about:
    """Makes the fields that all signals of a revision have."""

    def __init__(self, revised: Revised, model: str, constitution: Constitution) -> None:
        self._revised, self._model, self._constitution = revised, model, constitution

    def __call__(self, responses: list[str], what: str, *principles: str) -> Context:
        said = repr((self._model, self._constitution.label, self._revised.prompt, responses, self._revised.last, what))
        digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return {
            "prompt": prompt_of(self._revised.prompt),
            "responses": responses,
            "event_id": f"critique-{digest}",
            "annotator_id": f"{self._model}/{self._constitution.label}"[-128:],
            "source": "llm_judge",
            "tags": tags_of({"principle": "+".join(principles), "constitution": self._constitution.label}),
        }
