"""The frozen policy that a learning one is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference other than the policy that training starts from.

    Attributes:
        version: Its name in messages.
        digest: What identifies its weights. A checkpoint of a run with another reference is not taken up.
        load: Loads it as a causal LM in float32. It has the vocabulary of the policy that learns.
    """

    version: str
    digest: str
    load: Callable[[], Any]
