"""Compares what a user asks of a first model with the version that a store has already.

A later version keeps its parent's base, heads and length. A setting for a first model then has no effect, and is
refused instead of being ignored.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rewardloop.formats.store import Manifest
from rewardloop_trainer.reward.settings import RewardHyperparameters


@dataclass(frozen=True, slots=True)
class FirstModel:
    """What a user asks of the first version of a model.

    Attributes:
        model: The model's name.
        base: Directory or hub id; empty if the user names none.
        heads: Number of score heads; None if the user leaves it open.
        max_length: Most tokens; None if the user leaves it open.
    """

    model: str
    base: str
    heads: int | None = None
    max_length: int | None = None

    @classmethod
    def of_trainer(cls, settings: RewardHyperparameters) -> FirstModel:
        """Take what the trainer's settings say, without their defaults."""
        given = settings.model_fields_set
        return cls(
            "reward",
            settings.base,
            settings.heads if "heads" in given else None,
            settings.max_length if "max_length" in given else None,
        )

    def differences(self, live: Manifest) -> list[str]:
        """Return how the live version differs from what is asked for, one phrase for each difference."""
        found = []
        if self.base and not is_same_base(self.base, live.base):
            found.append(f"was made from {live.base or 'a base that its manifest does not name'}, not from {self.base}")
        if self.heads is not None and self.heads != live.heads:
            found.append(f"has {live.heads} score heads, not {self.heads}")
        wanted, has = self.max_length, live.max_length
        # The note names the length that was asked for if the base reads less.
        is_capped = wanted is not None and has < wanted and f"{wanted:,}" in live.notes.get("max_length", "")
        if wanted is not None and has != wanted and not is_capped:
            found.append(f"reads {has:,} tokens, not {wanted:,}")
        return found

    def given(self) -> str:
        """Return the names of the trainer's settings that are given, for messages."""
        values = {"base": self.base or None, "heads": self.heads, "max-length": self.max_length}
        return ", ".join(f"--reward.{name}" for name, value in values.items() if value is not None)

    def export_command(self, live: Manifest, store: str, more: Sequence[str] = ()) -> str:
        """Return the command that publishes what is asked for as a new version.

        Args:
            live: The live version, whose base is taken if the user names none.
            store: The model store.
            more: Further flags of the export.
        """
        words = ["rewardloop", "export", "--model", self.model, "--base", self.base or live.base, "--store", store]
        words += [] if self.heads is None else ["--heads", str(self.heads)]
        words += [] if self.max_length is None else ["--max-length", str(self.max_length)]
        return shlex.join([*words, *more])


def is_same_base(given: str, recorded: str) -> bool:
    """Return whether two names mean the same base: equal hub ids, or paths to one place."""
    return bool(recorded) and (given == recorded or os.path.realpath(given) == os.path.realpath(recorded))


def refusal_of_trainer(settings: RewardHyperparameters, live: Manifest, store: str) -> str:
    """Return why the trainer's settings of a first model are refused, and what to do; empty if they fit."""
    wanted = FirstModel.of_trainer(settings)
    if not (found := wanted.differences(live)):
        return ""
    given = wanted.given()
    return (
        f"{given} would be ignored: reward version {live.version} is live and {'; it '.join(found)}. Leave {given} out "
        f"to train from the live version, or publish a new one with '{wanted.export_command(live, store)}' and make it "
        "live with 'rewardloop models promote reward VERSION'"
    )
