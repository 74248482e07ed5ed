"""Chooses who scores a request: the model "reward", another reward model, or a mixture of several."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from rewardloop.formats.mixing.names import REWARD
from rewardloop.v1 import reward_pb2
from rewardloop_server.calls.errors import InvalidRequest, Violation
from rewardloop_server.doors.call import Call
from rewardloop_server.mixing.mixture_scorer import MixtureScorer
from rewardloop_server.scoring.score_group import GroupScorer, ScoredGroup


class Scorers:
    """The models and mixtures that this process scores with. No name has both.

    Args:
        models: The reward models by name; "reward" is among them.
        mixtures: The mixtures by name.
    """

    def __init__(self, models: Mapping[str, GroupScorer], mixtures: Mapping[str, MixtureScorer]) -> None:
        self._mixtures = mixtures
        self._by_name: dict[str, GroupScorer | MixtureScorer] = {**models, **mixtures}
        self._default = models[REWARD]

    def score(
        self, request: reward_pb2.ScoreRequest, call: Call, *, is_bounded: bool = True, is_bulk: bool = False
    ) -> Awaitable[ScoredGroup]:
        """Score one group with what it names; see `GroupScorer.score` and `MixtureScorer.score`.

        Raises InvalidRequest if there is no model or mixture of that name.
        """
        if not request.model:  # as nearly always, and then at no cost
            return self._default.score(request, call, is_bounded=is_bounded, is_bulk=is_bulk)
        return self._of(request.model, "model").score(request, call, is_bounded=is_bounded, is_bulk=is_bulk)

    def check(self, name: str, field: str) -> MixtureScorer | None:
        """Return the mixture of this name, or None if it is a model's. Raises InvalidRequest for any other name."""
        found = self._of(name or REWARD, field)
        return found if isinstance(found, MixtureScorer) else None

    def readers(self, name: str) -> int:
        """Return how many models read a group that names this model or mixture; 1 for a name that there is not."""
        mixture = self._mixtures.get(name) if name else None
        return 1 if mixture is None else max(1, len(mixture.mixture.models))

    def _of(self, name: str, field: str) -> GroupScorer | MixtureScorer:
        if (found := self._by_name.get(name)) is None:
            raise InvalidRequest([Violation(field, f"not one of {', '.join(self._by_name)}")])
        return found
