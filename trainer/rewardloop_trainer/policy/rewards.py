"""Rewards of responses, which the scoring service gives through the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rewardloop.formats.messages import prompt_of
from rewardloop_client import RewardloopClient, RewardloopError, ScoreGroup, ScoreResult
from rewardloop_trainer.data.preferences import Prompt

_GROUPS = 64
_BATCH_BYTES = 2 * 2**20  # of one request, below what a server takes by default


@dataclass(frozen=True, slots=True)
class Reward:
    """The scoring service's verdict on a response.

    Attributes:
        score: The calibrated score.
        uncertainty: The spread of the score heads, on the scale of the score.
        version: The reward version that scored. Of a mixture it names the versions of all parts.
    """

    score: float
    uncertainty: float = 0.0
    version: str = ""

    def pessimistic(self, caution: float) -> float:
        """score - caution * uncertainty, which makes responses that the heads disagree on less attractive.

        Source: uncertainty-weighted optimisation, Coste et al. 2023; they subtract the variance of an ensemble.
        """
        return self.score - caution * self.uncertainty


def score_groups(
    server: RewardloopClient,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    *,
    version: str | None = None,
    model: str = "",
    timeout_s: float = 60.0,
    on_batch: Callable[[], None] = lambda: None,
) -> list[list[Reward | None]]:
    """Score responses in the trainer's lane.

    The responses to one prompt are one group, so that a single reward version scores all of them.

    Args:
        server: Client of the scoring service.
        prompts: The prompts.
        responses: The responses to each prompt.
        version: Reward version to score with, which must be warm on the server; None: the one that serves.
        model: Reward model or mixture to score with; empty: "reward".
        timeout_s: Deadline of one request, in seconds.
        on_batch: Called before each request; may raise to stop.

    Returns:
        The rewards in the shape of ``responses``; None for an empty response, which cannot be scored.

    Raises:
        RewardloopError: If a group was not scored.
    """
    scores: list[list[Reward | None]] = [[None] * len(group) for group in responses]
    for i, kept, outcome in _scored(server, prompts, responses, version, model, timeout_s, on_batch):
        for j, scored in zip(kept, outcome.scores, strict=True):
            scores[i][j] = Reward(scored.score, scored.uncertainty, _version(outcome))
    return scores


@dataclass(frozen=True, slots=True)
class FlooredPart:
    """What a part of a mixture that has a floor gives responses.

    Attributes:
        name: The part's name in the mixture.
        floor: The least value that is wanted.
        values: The value of each response to each prompt; None for an empty response.
    """

    name: str
    floor: float
    values: list[list[float | None]]


def floored_parts(
    server: RewardloopClient,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    *,
    model: str,
    timeout_s: float = 60.0,
    on_batch: Callable[[], None] = lambda: None,
) -> list[FlooredPart]:
    """Return the parts of a mixture that have floors, with their values of the responses.

    Arguments and exceptions are those of `score_groups`. The list is empty if ``model`` is no mixture with a floor.
    """
    found: dict[str, FlooredPart] = {}
    for i, kept, outcome in _scored(server, prompts, responses, None, model, timeout_s, on_batch):
        for part in outcome.parts:
            if part.floor is None:
                continue
            blank: list[list[float | None]] = [[None] * len(group) for group in responses]
            values = found.setdefault(part.name, FlooredPart(part.name, part.floor, blank)).values
            for j, value in zip(kept, part.values, strict=True):
                values[i][j] = value
    return list(found.values())


def _scored(
    server: RewardloopClient,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[str]],
    version: str | None,
    model: str,
    timeout_s: float,
    on_batch: Callable[[], None],
) -> Iterator[tuple[int, list[int], ScoreResult]]:
    """Yield the place of each prompt with the places of its responses that are not empty, and what they were given."""
    asked = [
        (i, [j for j, text in enumerate(group) if text and not text.isspace()]) for i, group in enumerate(responses)
    ]
    asked = [(i, kept) for i, kept in asked if kept]
    for batch in _batches(prompts, responses, asked):
        on_batch()
        groups = [
            ScoreGroup(
                prompt_of(prompts[i]),
                [responses[i][j] for j in kept],
                pin_version=version,
                model=model,
            )
            for i, kept in batch
        ]
        outcomes = server.score_batch(groups, lane="trainer", timeout_s=timeout_s)
        for (i, kept), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, RewardloopError):
                raise outcome
            yield i, kept, outcome


def _version(scored: ScoreResult) -> str:
    version = scored.model_version
    return f"{version.version}-{version.digest[:12]}" if scored.parts else version.version


def _batches(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[str]], asked: Sequence[tuple[int, list[int]]]
) -> Iterator[list[tuple[int, list[int]]]]:
    """Split the groups into requests of at most `_GROUPS` groups and `_BATCH_BYTES`, unless one group has more."""
    batch: list[tuple[int, list[int]]] = []
    held = 0
    for i, kept in asked:
        size = sum(len(turn.content.encode()) for turn in prompts[i])
        size += sum(len(responses[i][j].encode()) for j in kept)
        if batch and (len(batch) == _GROUPS or held + size > _BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append((i, kept))
        held += size
    if batch:
        yield batch
