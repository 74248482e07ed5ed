"""The type of a chat model that is asked to judge, to criticise, to revise or to paraphrase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rewardloop_trainer.data.preferences import Prompt


@dataclass(frozen=True, slots=True)
class Request:
    """A call of a chat model.

    Attributes:
        messages: The conversation.
        max_tokens: Most tokens of the reply.
        temperature: 0 takes the likeliest token.
        seed: Requests that differ in it alone are separate draws. An endpoint may ignore it.
    """

    messages: Prompt
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply.

    Attributes:
        text: What the model wrote.
        model: The version of the model that answered, as it names itself.
        prompt_tokens: Tokens that were read.
        reply_tokens: Tokens that were written.
        is_cut: Whether it ended at the bound of tokens.
    """

    text: str
    model: str
    prompt_tokens: int
    reply_tokens: int
    is_cut: bool = False


class Chat(Protocol):
    """Answers conversations. Threads may share an instance."""

    @property
    def name(self) -> str:
        """Name the model and its version, as a cache tells models apart."""

    def complete(self, request: Request) -> Reply:
        """Return the reply.

        Raises:
            JudgeError: See its tree.
        """


@runtime_checkable
class Chooser(Protocol):
    """A chat model that says how likely each of several replies is, so that nothing needs to be sampled."""

    @property
    def name(self) -> str:
        """Name the model and its version."""

    def choose(self, messages: Prompt, replies: Sequence[str]) -> list[float]:
        """Return the probability of each reply after these messages, given that it is one of them.

        Raises:
            JudgeRefused: If the model cannot read so long a conversation.
        """
