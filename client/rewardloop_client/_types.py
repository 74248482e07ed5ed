"""What calls take and give: frozen values, no protobuf to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from rewardloop.v1 import common_pb2

LaneName: TypeAlias = Literal["production", "trainer"]
TruncationName: TypeAlias = Literal["allowed", "refused"]
SourceName: TypeAlias = Literal["human", "llm_judge", "implicit"]
SelectionName: TypeAlias = Literal["best", "informative", "uniform"]
PromptLike: TypeAlias = str | Sequence[Mapping[str, str]] | common_pb2.Prompt


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The version that made a reply: its number in the store ("7") and the digest of its files."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class ResponseScore:
    """``score``: calibrated, comparable across versions. ``logit``: raw. ``uncertainty``: spread of the score
    heads on the scale of ``score``. ``truncated``: the pair was shortened to the model's maximum length."""

    score: float
    logit: float
    uncertainty: float
    token_count: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the request's time went on the server, in microseconds."""

    queue_us: int
    tokenize_us: int
    run_us: int


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """One group's scores, in the order of its responses, all made by one version."""

    scores: tuple[ResponseScore, ...]
    model_version: ModelVersion
    timings: Timings

    @property
    def values(self) -> tuple[float, ...]:
        """The calibrated scores alone."""
        return tuple(s.score for s in self.scores)

    @property
    def best(self) -> int:
        """Index of the response with the highest score; the first of equals."""
        return max(range(len(self.scores)), key=lambda i: self.scores[i].score)


@dataclass(frozen=True, slots=True)
class ScoreGroup:
    """One group to score. ``pin_version``: exactly this version or digest; ``min_version``: this or a later one."""

    prompt: PromptLike
    responses: Sequence[str]
    truncation: TruncationName = "allowed"
    pin_version: str | None = None
    min_version: int | None = None
    lane: LaneName | None = None


@dataclass(frozen=True, slots=True)
class RecordResult:
    """``stream_id``: the signal's place in the stream, "" for a ``duplicate`` (an event_id recorded before)."""

    stream_id: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """``log_probability``: sum over the sampled tokens, in nats, under the distribution sampled from.
    ``finish_reason``: "stop", "length" or "unspecified". ``policy_version``: None where it is the generation's.
    ``score``, ``uncertainty``: as of a `ResponseScore`, by the live reward model; None without best_of."""

    text: str
    log_probability: float
    token_count: int
    finish_reason: str
    policy_version: ModelVersion | None = None
    score: float | None = None
    uncertainty: float | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """How the shown candidates were chosen among ``sampled``: a ``random_share`` of sets is drawn uniformly, and
    ``is_random`` says whether this one was. ``set_probability``: that this set is shown, given the candidates and their
    scores. ``expected_information``: of a pair's comparison about which score head is right, in nats."""

    selection: SelectionName
    sampled: int
    random_share: float
    is_random: bool
    set_probability: float
    expected_information: float
    reward_version: ModelVersion


@dataclass(frozen=True, slots=True)
class Generation:
    """What the policy answered. Feedback names it by ``generation_id``. ``chosen``: None without best_of."""

    generation_id: str
    candidates: tuple[Candidate, ...]
    policy_version: ModelVersion
    chosen: Chosen | None = None


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """A version in the model store. ``state`` on the server that answered: "stored", "warming", "active", "canary",
    "shadow", "warm" (in memory, and may be pinned) or "draining". ``parent_version``: "" for a first one.
    ``manifest_json``: "" except from get_version."""

    model: str
    version: str
    digest: str
    state: str
    parent_version: str
    create_time: datetime | None
    metrics: Mapping[str, float]
    manifest_json: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """The version that is active now, and the one that was before ("" if none)."""

    version: VersionInfo
    previous_version: str
