"""isolate: cuts a run that failed into parts that run again, so that only the request at fault gets the error.

One request can hold what the graph cannot run, or what it gives no finite logit for, and then the whole run fails. Its
requests run again in about as many parts as the root of their number, and those of a part that fails again run one by
one. So every request runs at most three times, and an innocent one waits for few more runs. The requests of a run that
did not end in time run again one by one at once, because each run that holds the one at fault takes all of its time.
That holds for a single request too if a server elsewhere ran it, because the server may be at fault.

A version whose server is away turns away its own requests and no others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from weakref import WeakKeyDictionary

import structlog

from rewardloop_server.calls.errors import EngineStuck, InternalError, NotLoadable, RewardloopError, told
from rewardloop_server.calls.vocabulary import FailedRunOutcome
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import OutOfMemory, Overrun, RewardModel, UnusableLogits
from rewardloop_server.scoring.lane import Group, Lane, Part, Row
from rewardloop_server.scoring.offer import Failure, Offer

log = structlog.get_logger()

# So few requests run one by one at once.
_FEW = 4

# Once so many runs have not ended, the requests that are left of them fail without another run.
_MOST_OVERRUNS = 3


def parts_of(rows: Sequence[Row], *, is_part: bool) -> Iterator[list[Row]]:
    """Yield the parts in which the rows of a failed run are to run again. The rows of a group stay together.

    Args:
        rows: The run's rows.
        is_part: The run was itself part of one that failed.
    """
    groups: dict[Group, list[Row]] = {}
    # A caller that sends one bad request often sends several, so the groups of a caller go into the same parts.
    for row in sorted(rows, key=lambda row: row[0].caller):
        groups.setdefault(row[0], []).append(row)
    members = list(groups.values())
    size = 1 if is_part or len(members) <= _FEW else math.isqrt(len(members))
    for start in range(0, len(members), size):
        yield list(chain.from_iterable(members[start : start + size]))


def error_of(error: Exception) -> RewardloopError:
    """Return what the caller of a request gets on which the model failed with ``error``."""
    if isinstance(error, UnusableLogits | Overrun):
        return InternalError()
    return NotLoadable(f"the model failed on this request: {told(error)}")


class Suspects:
    """The runs that were told to stop and have not ended, and their groups that are not answered."""

    def __init__(self) -> None:
        self._runs: set[Offer] = set()
        self._groups: set[Group] = set()
        self._overruns = 0

    def __bool__(self) -> bool:
        return bool(self._runs or self._groups)

    def __contains__(self, group: Group) -> bool:
        return group in self._groups

    def __iter__(self) -> Iterator[Group]:
        return iter(tuple(self._groups))

    @property
    def has_room(self) -> bool:
        """Whether their groups may still be tried one by one."""
        return self._overruns < _MOST_OVERRUNS

    def add(self, offer: Offer) -> None:
        """Suspect the groups of a run that was told to stop."""
        self._overruns = self._overruns + 1 if self else 1
        self._runs.add(offer)
        for group, _ in offer.rows:
            if group not in self._groups and not group.outcome.done():
                self._groups.add(group)
                group.outcome.add_done_callback(lambda _, group=group: self._groups.discard(group))  # type: ignore[misc]

    def ended(self, offer: Offer) -> None:
        """Note that a run has ended, whether or not it was told to stop."""
        self._runs.discard(offer)


class Isolation:
    """Decides what becomes of the groups of runs that failed or do not end. Used from the event loop.

    Args:
        lanes: The lanes in which groups wait, by name.
        metrics: Where such runs are counted.
    """

    def __init__(self, lanes: Mapping[str, Lane], metrics: ServerMetrics) -> None:
        self._lanes = lanes
        self._metrics = metrics
        self._suspects = Suspects()
        self._elsewhere: WeakKeyDictionary[RewardModel, Suspects] = WeakKeyDictionary()

    @property
    def is_stuck(self) -> bool:
        """Whether a run here did not end in time, and it is not known yet which of its groups was at fault."""
        return bool(self._suspects)

    def refuse_if_stuck(self) -> None:
        """Raise EngineStuck if `is_stuck`."""
        if self._suspects:
            raise _stuck()

    def refuse_if_away(self, model: RewardModel) -> None:
        """Raise EngineStuck if the version's server is away."""
        if model.is_away:
            raise _away(model)

    def failed(self, lane: Lane, rows: Sequence[Row], model: RewardModel, part: Part | None, failure: Failure) -> None:
        """Let the groups of a failed run wait again in parts; fail them if it is one, or the version is broken.

        The rows of a run for which memory did not suffice wait again as they were: the next run has fewer tokens.
        """
        groups = {group for group, _ in rows}
        is_doubtful = failure.is_overrun and model.is_elsewhere and part is None
        outcome: FailedRunOutcome = "isolated" if len(groups) < 2 and not is_doubtful else "split"
        if failure.is_away:
            outcome = "away"
        elif failure.is_closed or failure.is_broken:
            outcome = "broken"
        elif len(rows) > 1 and isinstance(failure.error, OutOfMemory):
            outcome = "smaller"
        self._metrics.failed_runs_total.labels(outcome=outcome).inc()
        log.log(
            logging.WARNING if outcome in ("split", "smaller") else logging.ERROR,
            "run failed",
            outcome=outcome,
            version=model.manifest.version,
            rows=len(rows),
            groups=len(groups),
            exc_info=None if outcome == "smaller" else failure.error,
        )
        if failure.is_overrun and not self._suspects_of(model).has_room:
            self._convict(self._suspects_of(model))
        elif outcome == "away":
            self._turn_away(lane, groups, model)
        elif outcome == "smaller":
            lane.put_back(rows, part)
        elif outcome == "split":
            for each in parts_of(rows, is_part=part is not None or failure.is_overrun):
                lane.put_back(each, Part())
        else:
            for group in groups:
                lane.fail(group, _stuck() if failure.is_broken else error_of(failure.error))

    def failing(self, offer: Offer) -> None:
        """Turn all groups away while a version of this process fails on everything, but for those of its run."""
        self._suspects.add(offer)
        self._turn_others_away()

    def overran(self, offer: Offer) -> None:
        """Suspect the groups of a run that does not end.

        If this process runs it, turn all others away, so that another replica has them.
        """
        self._suspects_of(offer.model).add(offer)
        self._metrics.stuck(offer.model.manifest.model, offer.model.manifest.version)
        if not offer.model.is_elsewhere:
            self._turn_others_away()

    def _suspects_of(self, model: RewardModel) -> Suspects:
        """Return the suspects among which a version's are: those of this process, or its own if it runs elsewhere."""
        return self._elsewhere.setdefault(model, Suspects()) if model.is_elsewhere else self._suspects

    def _turn_away(self, lane: Lane, groups: Iterable[Group], model: RewardModel) -> None:
        """Turn these groups away, which no server answered, and all that wait for the version if it is away still."""
        for group in groups:
            lane.fail(group, _away(model))
        if model.is_away:
            for each in self._lanes.values():
                for group in each.groups():
                    if group.model is model:
                        each.fail(group, _away(model))

    def _turn_others_away(self) -> None:
        for lane in self._lanes.values():
            for group in lane.groups():
                if group not in self._suspects:
                    lane.fail(group, _stuck())

    def ended(self, offer: Offer) -> None:
        """Note that a run has ended, whether or not it was told to stop."""
        self._suspects_of(offer.model).ended(offer)

    def convict(self) -> None:
        """Fail all suspects that are left, with an error after which no client asks another replica."""
        for suspects in (self._suspects, *self._elsewhere.values()):
            self._convict(suspects)

    def _convict(self, suspects: Suspects) -> None:
        for lane in self._lanes.values():
            for group in lane.groups():
                if group in suspects:
                    lane.fail(group, InternalError())
        for group in suspects:
            if not group.outcome.done():
                group.outcome.set_exception(InternalError())


def _stuck() -> EngineStuck:
    return EngineStuck("a run of the reward model does not end, or the model fails on everything")


def _away(model: RewardModel) -> EngineStuck:
    version = model.manifest.version
    return EngineStuck(f"no server that runs version {version} answers and gives the logits that it proved")
