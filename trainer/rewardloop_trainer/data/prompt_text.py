"""Conversations as texts that a reader of a report sees."""

from __future__ import annotations

from rewardloop_trainer.data.preferences import Prompt


def conversation_text(prompt: Prompt) -> str:
    """Return a prompt as text: its one turn, or all turns with their roles."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
