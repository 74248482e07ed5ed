"""The values that calls take and return. They are frozen dataclasses, so that callers need no protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from rewardloop.v1 import common_pb2

LaneName: TypeAlias = Literal["production", "trainer"]
TruncationName: TypeAlias = Literal["allowed", "refused"]
SourceName: TypeAlias = Literal["human", "llm_judge", "implicit"]
ErasureStateName: TypeAlias = Literal["pending", "done", "away", "unspecified"]
SelectionName: TypeAlias = Literal["best", "informative", "uniform"]
# A text, the messages of a conversation, ``{"messages": [...], "tools": [...]}``, or a ready message.
PromptLike: TypeAlias = str | Sequence[Mapping[str, Any]] | Mapping[str, Any] | common_pb2.Prompt


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The model version that made a reply: its number in the store, such as "7", and the digest of its files."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class ResponseScore:
    """The score of one response.

    Attributes:
        score: Calibrated score, comparable across versions.
        logit: Raw output of the model.
        uncertainty: Spread of the score heads, on the scale of ``score``.
        token_count: Tokens of prompt and response as they were scored.
        truncated: The pair was shortened to the model's maximum length.
        meets_floors: Whether every part of the mixture is at or above its floor; None unless a mixture with floors
            scored.
    """

    score: float
    logit: float
    uncertainty: float
    token_count: int
    truncated: bool
    meets_floors: bool | None = None


@dataclass(frozen=True, slots=True)
class ScorePart:
    """The values that one part of a mixture gives the responses of a group.

    Attributes:
        name: The part's name in the mixture.
        model: The reward model that gave the values; empty for a rule.
        model_version: The version of that model; None for a rule.
        values: The value of each response.
        uncertainties: The spread of the model's heads for each response; empty for a rule.
        weight: What the values are multiplied by in the total.
        floor: The least value that is wanted; None if the part has no floor.
    """

    name: str
    model: str
    model_version: ModelVersion | None
    values: tuple[float, ...]
    uncertainties: tuple[float, ...]
    weight: float
    floor: float | None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the request's time went on the server, in microseconds."""

    queue_us: int
    tokenize_us: int
    run_us: int


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The scores of one group in the order of its responses, all made by one version.

    ``parts`` says what each part of a mixture contributed, in the order of its file; it is empty if one model scored.
    """

    scores: tuple[ResponseScore, ...]
    model_version: ModelVersion
    timings: Timings
    parts: tuple[ScorePart, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        """The calibrated scores alone."""
        return tuple(s.score for s in self.scores)

    @property
    def best(self) -> int:
        """Index of the response with the highest score; the first one of equal scores."""
        return max(range(len(self.scores)), key=lambda i: self.scores[i].score)


@dataclass(frozen=True, slots=True)
class ScoreGroup:
    """One group to score: a prompt with its responses. See `RewardloopClient.score` for the other fields."""

    prompt: PromptLike
    responses: Sequence[str]
    truncation: TruncationName = "allowed"
    pin_version: str | None = None
    min_version: int | None = None
    lane: LaneName | None = None
    model: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class RecordResult:
    """A recorded signal.

    Attributes:
        stream_id: The signal's place in the stream; empty for a duplicate.
        duplicate: The event_id had been recorded before.
        erased: The signal of this event_id was erased, and was not recorded again. It counts as a duplicate, too.
    """

    stream_id: str
    duplicate: bool
    erased: bool = False


@dataclass(frozen=True, slots=True)
class ErasureHolder:
    """A process that keeps signals, and how far it has come with an erasure.

    Attributes:
        name: Such as "trainer".
        state: "pending", "done", or "away": it has not been seen for a minute, and carries the erasure out when it
            starts again.
        erased: How many things it erased, by what they were.
        notes: What it could not erase, or somebody has to do by hand.
    """

    name: str
    state: ErasureStateName
    erased: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaughtVersion:
    """A version that has learned from erased signals: from its own data, or through a version it descends from."""

    model: str
    version: str
    directly: bool


@dataclass(frozen=True, slots=True)
class ErasureProgress:
    """How far an erasure has come.

    Attributes:
        erasure_id: Names it.
        done: Whether nobody is waited for.
        requested_at: When it was asked for.
        holders: Who keeps signals.
        versions: The versions that learned from the signals, once the trainer has reported.
    """

    erasure_id: str
    done: bool
    requested_at: datetime
    holders: tuple[ErasureHolder, ...]
    versions: tuple[TaughtVersion, ...]


@dataclass(frozen=True, slots=True)
class TaughtVersions:
    """Names what an erasure would erase, and which versions have learned from it.

    Attributes:
        done: Whether the trainer has looked. Until then there is nothing else.
        looked_at: When it looked; None until then.
        signals: How many signals the ledger has.
        versions: The versions that learned from them.
    """

    done: bool
    looked_at: datetime | None
    signals: int
    versions: tuple[TaughtVersion, ...]


@dataclass(frozen=True, slots=True)
class TokenLogProbability:
    """A sampled token: what it adds to the text, and its log-probability in nats under what was sampled from."""

    text: str
    log_probability: float


@dataclass(frozen=True, slots=True)
class CandidateText:
    """The next part of the text of one candidate of a stream.

    Attributes:
        generation_id: Names the answer in feedback, once the stream has ended.
        candidate: Index into the candidates of the generation at the stream's end.
        text: The next part of its text.
    """

    generation_id: str
    candidate: int
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer of the policy.

    Attributes:
        text: The answer.
        log_probability: Sum over the sampled tokens, in nats, under the distribution that was sampled from.
        token_count: Number of sampled tokens.
        finish_reason: "stop", "length" or "unspecified".
        policy_version: The version that sampled it; None if it is that of the generation.
        score: Calibrated score by the reward model, or the total of the mixture; None without best_of.
        uncertainty: Spread of the score heads; None without best_of.
        parts: What each part of the mixture says, by its name; empty unless a mixture scored.
        tokens: The sampled tokens with text; empty unless they were asked for.
    """

    text: str
    log_probability: float
    token_count: int
    finish_reason: str
    policy_version: ModelVersion | None = None
    score: float | None = None
    uncertainty: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    tokens: tuple[TokenLogProbability, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """How the returned candidates were chosen among all that were sampled.

    Attributes:
        selection: The rule of the choice.
        sampled: Number of candidates that were sampled and scored.
        random_share: Share of the sets that are drawn uniformly.
        is_random: This set was drawn uniformly.
        set_probability: Probability that this set is shown, given the candidates and their scores.
        expected_information: What a pair's comparison tells about which score head is right, in nats.
        reward_version: The reward version that scored the candidates.
        reward_model: The reward model or mixture that the request named; empty for "reward".
        meeting_floors: How many of the sampled candidates met all floors of the mixture; None if it has no floors.
    """

    selection: SelectionName
    sampled: int
    random_share: float
    is_random: bool
    set_probability: float
    expected_information: float
    reward_version: ModelVersion
    reward_model: str = ""
    meeting_floors: int | None = None


@dataclass(frozen=True, slots=True)
class TruncatedPrompt:
    """What of a prompt a policy did not read, because it was too long.

    Attributes:
        dropped_turns: How many of the oldest turns were left out whole.
        is_cut: Whether the middle of the turns that remain was left out too.
    """

    dropped_turns: int
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """The policy's answers to one prompt. Feedback names them by ``generation_id``.

    ``chosen`` says how they were chosen among the sampled ones; it is None without best_of. ``truncated`` says what of
    the prompt the policy did not read; it is None if it read all. ``prompt_token_count`` is how many tokens it read.
    """

    generation_id: str
    candidates: tuple[Candidate, ...]
    policy_version: ModelVersion
    chosen: Chosen | None = None
    truncated: TruncatedPrompt | None = None
    prompt_token_count: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The findings of the last evaluation of a version.

    Attributes:
        evaluate_time: When, in UTC; None if the server does not say it.
        against: What the version was compared with, in words; empty for nothing.
        figures: By their name in the report.
        report_id: The report in the store; empty if it is in none.
    """

    evaluate_time: datetime | None
    against: str
    figures: Mapping[str, float]
    report_id: str


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """A version in the model store.

    Attributes:
        model: The model's name, such as "reward" or "policy".
        version: Number in the store.
        digest: Digest of the files that decide its outputs.
        state: Its state on the server that answered: "stored", "warming", "active", "canary", "shadow", "warm" (in
            memory, and may be pinned), "draining", or "unspecified" for a state of a newer server.
        parent_version: The version that it learned from; empty for a first one.
        create_time: When it was published, in UTC.
        metrics: How it measured, by name.
        manifest_json: The whole manifest as JSON; empty except from get_version.
        evaluation: What the last evaluation found, from list_versions and get_version; None without one.
    """

    model: str
    version: str
    digest: str
    state: str
    parent_version: str
    create_time: datetime | None
    metrics: Mapping[str, float]
    manifest_json: str
    evaluation: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """The name and the roles under which the services know a caller.

    Attributes:
        caller: Its name in the callers' file; empty if the services ask nobody for credentials.
        roles: What its credentials allow, such as "score" or "admin".
        is_open: The services ask nobody for credentials, so that everybody may call everything.
    """

    caller: str
    roles: frozenset[str]
    is_open: bool


@dataclass(frozen=True, slots=True)
class Promotion:
    """The version that is active now, and the number of the one before it (empty if there was none)."""

    version: VersionInfo
    previous_version: str
