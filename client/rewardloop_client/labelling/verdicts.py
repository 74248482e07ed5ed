"""Makes verdicts, with one constructor for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewardloop.v1 import feedback_pb2, labelling_pb2
from rewardloop_client._convert import building


class Verdict:
    """Constructors of what a labeller says about a task. Indices count `LabellingTask.candidates` from 0.

    The server checks the content; the constructors check only what a message cannot hold, and raise InvalidRequest.
    """

    @staticmethod
    def choice(chosen: int, rejected: int, *, strength: float | None = None) -> labelling_pb2.Verdict:
        """Say that candidate ``chosen`` is better than ``rejected``, by a strength above 0 and at most 1."""
        with building("verdict.choice"):
            choice = feedback_pb2.Choice(chosen=chosen, rejected=rejected, strength=strength)
            return labelling_pb2.Verdict(choice=choice)

    @staticmethod
    def tie(first: int = 0, second: int = 1) -> labelling_pb2.Verdict:
        """Say that two candidates are equally good."""
        with building("verdict.tie"):
            return labelling_pb2.Verdict(tie=feedback_pb2.Tie(first=first, second=second))

    @staticmethod
    def ranking(order: Sequence[int]) -> labelling_pb2.Verdict:
        """Rank all candidates. ``order`` lists every index once, best first."""
        with building("verdict.ranking"):
            return labelling_pb2.Verdict(ranking=feedback_pb2.Ranking(order=order))

    @staticmethod
    def ratings(values: Mapping[int, float]) -> labelling_pb2.Verdict:
        """Grade candidates, by their indices, on the scale of the task."""
        with building("verdict.ratings"):
            ratings = [feedback_pb2.Rating(response=i, value=value) for i, value in values.items()]
            return labelling_pb2.Verdict(ratings=labelling_pb2.Ratings(ratings=ratings))

    @staticmethod
    def edit(edited_text: str, *, response: int = 0) -> labelling_pb2.Verdict:
        """Give a better text for one candidate."""
        with building("verdict.edit"):
            return labelling_pb2.Verdict(edit=feedback_pb2.Edit(response=response, edited_text=edited_text))

    @staticmethod
    def skip(reason: str) -> labelling_pb2.Verdict:
        """Say why the labeller does not answer, in 1 to 64 characters."""
        with building("verdict.skip"):
            return labelling_pb2.Verdict(skip=labelling_pb2.Skip(reason=reason))
