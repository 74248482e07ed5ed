"""The OpenAI API's JSON of chat completions, of which every field is honoured or refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag

from rewardloop_gateway.answers import refused
from rewardloop_gateway.shapes import Body, Message, VersionShape

POLICY = "policy"
_INT64 = 2**63 - 1
_INT32 = 2**31 - 1


def _form(value: object) -> str:
    return "~many" if isinstance(value, list) else "~one"


_Stop: TypeAlias = Annotated[Annotated[str, Tag("~one")] | Annotated[list[str], Tag("~many")], Discriminator(_form)]


class StreamOptions(Body):
    """What a stream says beside the answer."""

    include_usage: bool | None = Field(None, description="a last chunk says how many tokens there were")


_UNUSED: Any = Field(None, description="taken only at a value that changes nothing")


class ChatRequest(Body):
    """A conversation for the policy to go on with.

    ``best_of``, ``selection``, ``random_share`` and ``reward_model`` are those of the service's Generate.
    """

    messages: Annotated[list[Message], Field(min_length=1, description="the conversation so far")]
    model: str = Field(POLICY, description="'policy', or 'policy:7' for exactly that version")
    n: Annotated[int | None, Field(ge=1, le=64, description="how many answers are returned; default: 1")] = None
    temperature: Annotated[float | None, Field(ge=0, le=5, description="0 takes the likeliest token; default: 1")] = (
        None
    )
    top_p: Annotated[float | None, Field(gt=0, le=1, description="share of the likeliest tokens; default: 1")] = None
    max_tokens: Annotated[int | None, Field(ge=1, le=_INT32, description="of each answer")] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=_INT32, description="the same as max_tokens")] = None
    seed: Annotated[int | None, Field(ge=-_INT64, le=_INT64, description="makes the sampling repeatable")] = None
    stop: _Stop | None = Field(None, description="texts at which an answer ends; they are not a part of it")
    stream: bool | None = Field(None, description="answer by server-sent events")
    stream_options: StreamOptions | None = Field(None, description="with stream alone")
    logprobs: bool | None = Field(None, description="log-probabilities under what was sampled from")
    best_of: Annotated[int | None, Field(ge=1, le=64, description="how many answers are sampled")] = None
    selection: Literal["best", "informative", "uniform"] | None = Field(
        None, description="which of the sampled answers are returned"
    )
    random_share: Annotated[float | None, Field(ge=0, le=1, description="how often they are drawn at random")] = None
    reward_model: str | None = Field(None, description="by whose scores they are selected; default: reward")

    # Taken at the values that change nothing, which some clients send.
    frequency_penalty: Literal[0] | float | None = _UNUSED
    presence_penalty: Literal[0] | float | None = _UNUSED
    logit_bias: dict[str, float] | None = _UNUSED
    top_logprobs: int | None = _UNUSED
    response_format: dict[str, Any] | None = _UNUSED
    tools: list[dict[str, Any]] | None = _UNUSED
    tool_choice: str | dict[str, Any] | None = _UNUSED
    parallel_tool_calls: bool | None = _UNUSED
    store: bool | None = _UNUSED
    service_tier: str | None = _UNUSED
    metadata: dict[str, str] | None = _UNUSED
    user: str | None = _UNUSED

    def check(self) -> None:
        """Raise Problem for the first field that cannot be honoured."""
        neutral: dict[str, tuple[object, ...]] = {
            "frequency_penalty": (0,),
            "presence_penalty": (0,),
            "logit_bias": ({},),
            "top_logprobs": (0,),
            "response_format": ({"type": "text"},),
            "tools": ([],),
            "tool_choice": ("none", "auto"),
            "parallel_tool_calls": (True, False),
            "store": (False,),
            "service_tier": ("auto", "default"),
            "metadata": ({},),
            "user": ("",),
        }
        for field, values in neutral.items():
            if (value := getattr(self, field)) is not None and value not in values:
                raise refused(field, "is not supported here, and is not ignored")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise refused("max_completion_tokens", "differs from max_tokens, which is its old name")
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "only with stream")
        if self.stream and self.best_of is not None:
            raise refused("best_of", "chooses among whole answers: not with stream")
        self.version()

    def version(self) -> str | None:
        """Return the version that is to answer; None for the live one. Raises Problem for another model."""
        name, colon, version = self.model.partition(":")
        if name != POLICY or bool(colon) != bool(version):
            raise refused("model", "is not 'policy' or 'policy:VERSION'; GET /v1/models lists them")
        return version or None

    def stops(self) -> list[str]:
        """Return the texts before which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class SaidMessage(BaseModel):
    """What the policy says."""

    role: str
    content: str


class LogprobToken(BaseModel):
    """A sampled token."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any]


class Logprobs(BaseModel):
    """The sampled tokens of an answer."""

    content: list[LogprobToken]


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: SaidMessage
    finish_reason: str = Field(description="stop or length")
    logprobs: Logprobs | None


class Usage(BaseModel):
    """How many tokens there were."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class SaidOf(BaseModel):
    """What the service says of one answer."""

    policy_version: VersionShape
    log_probability: float
    score: float | None
    uncertainty: float | None


class Extras(BaseModel):
    """What the service says beside the OpenAI API."""

    candidates: list[SaidOf]
    truncated: dict[str, Any] | None = Field(description="what of the conversation the policy did not read")
    chosen: dict[str, Any] | None = Field(description="how the answers were chosen among the sampled ones")


class ChatAnswer(BaseModel):
    """A completion. Its id is the generation_id, by which feedback names it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    rewardloop: Extras
