"""The JSON of text-embeddings-inference, OpenRLHF and vLLM."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag

from rewardloop_gateway.shapes import Body, Message

MOST_TEXTS = 1024


def form_of(value: object) -> str:
    """Return the tag of the form that a value has; see `shapes`."""
    if isinstance(value, list):
        return "~batch" if value and isinstance(value[0], list) else "~pair"
    return "~single"


class RerankRequest(Body):
    """A query and the texts to rank."""

    query: str
    texts: Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)]
    raw_scores: bool = Field(False, description="return logits instead of values between 0 and 1")
    return_text: bool = False
    truncate: bool | None = Field(False, description="shorten what is too long instead of refusing it")
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"


class Rank(BaseModel):
    """A text's place: its index in the request, and its score."""

    index: int
    score: float
    text: str | None = None


_Inputs: TypeAlias = Annotated[
    Annotated[str, Tag("~single")]
    | Annotated[list[str], Tag("~pair"), Field(min_length=1, max_length=2)]
    | Annotated[
        list[Annotated[list[str], Field(min_length=1, max_length=2)]],
        Tag("~batch"),
        Field(min_length=1, max_length=MOST_TEXTS),
    ],
    Discriminator(form_of),
]


class PredictRequest(Body):
    """A pair of prompt and response, or a batch of pairs."""

    inputs: _Inputs
    raw_scores: bool = Field(False, description="return logits instead of values between 0 and 1")
    truncate: bool | None = Field(False, description="shorten what is too long instead of refusing it")
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"


class Prediction(BaseModel):
    """The score of the only label."""

    score: float
    label: str


class RewardRequest(Body):
    """Texts to reward, each a prompt with its response."""

    query: Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)]
    prompts: list[str] | None = Field(None, description="the prompts with which the texts begin")
    labels: list[str | None] | None = Field(None, description="right answers, for a mixture that compares with them")


class Rewards(BaseModel):
    """The calibrated scores, in the order of the texts."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class ClassifyRequest(Body):
    """A conversation that ends with the answer to score."""

    model: str = Field("reward", description="reward model or mixture")
    messages: Annotated[list[Message] | None, Field(min_length=2)] = None
    input: str | list[str] | list[int] | None = Field(None, description="refused: it has no prompt")
    use_activation: bool = Field(True, description="return a value between 0 and 1 instead of the logit")


class ClassifyData(BaseModel):
    """The probability of the only class."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyUsage(BaseModel):
    """How many tokens were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None


class Classified(BaseModel):
    """A classification as vLLM writes it."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassifyData]
    usage: ClassifyUsage
