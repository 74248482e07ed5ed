"""JSON that several routes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from rewardloop_client import ModelVersion
from rewardloop_client._types import PromptLike


class Body(BaseModel):
    """Base of what callers send: unknown keys, numbers in quotes, and NaN are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


def _form(value: object) -> str:
    """Return the tag of the form that a value has, so that its errors are those of this form alone.

    Tags begin with "~", by which they are told from the keys of the JSON.
    """
    if isinstance(value, list):
        return "~parts"
    return "~conversation" if isinstance(value, dict | BaseModel) else "~text"


class TextPart(Body):
    """A part of a message's content."""

    type: str = Field(description="text")
    text: str


_Content: TypeAlias = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[TextPart], Tag("~parts")], Discriminator(_form)
]


class Message(Body):
    """A turn of a conversation, as the OpenAI API and Hugging Face write it."""

    role: str = Field(description="system, developer, user, assistant or tool")
    content: _Content | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Conversation(Body):
    """Messages, with the functions that the assistant may call."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


Prompt: TypeAlias = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[list[Message], Tag("~parts")]
    | Annotated[Conversation, Tag("~conversation")],
    Discriminator(_form),
]


class FieldError(BaseModel):
    """A field that breaks a rule."""

    field: str
    description: str


class ErrorDetail(BaseModel):
    """Why a request failed."""

    message: str
    type: str
    param: str | None = Field(description="the first field that breaks a rule")
    code: str = Field(description="the reason")
    reason: str
    violations: list[FieldError]
    retry_after_s: float | None = None


class ErrorBody(BaseModel):
    """An answer that is an error."""

    error: ErrorDetail


class VersionShape(BaseModel):
    """The model version that made an answer."""

    version: str
    digest: str


def messages_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages as the client takes them."""
    # Not by model_dump, which fails for arguments of calls that are nested deeply.
    return [{name: _plain(getattr(message, name)) for name in message.model_fields_set} for message in messages]


def _plain(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], TextPart):
        return [{"type": part.type, "text": part.text} for part in value]
    return value


def prompt_of(prompt: Prompt) -> PromptLike:
    """Return the prompt as the client takes it."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return messages_of(prompt)
    return {"messages": messages_of(prompt.messages), **({"tools": prompt.tools} if prompt.tools else {})}


def version_json(version: ModelVersion) -> dict[str, str]:
    """Return a version as JSON."""
    return {"version": version.version, "digest": version.digest}
