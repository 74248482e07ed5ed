"""Finds out which log-probabilities a vLLM server reports, by comparing those of a probe with torch's own.

vLLM has four kinds (`--logprobs-mode`), and its API does not say which is on. At temperature 1 without a nucleus raw
and processed ones are the same, so a probe is sampled at another temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewardloop_sampling.vllm_client import VllmOtherNumbers

PROBE_TEMPERATURE = 0.5
PROBE_TOKENS = 16
# What was reported is of the kind from which it is this much less far away than from the other.
_LEAST_CONTRAST = 2.0


@dataclass(frozen=True, slots=True)
class Probe:
    """The log-probabilities of the same sampled tokens, in nats.

    Attributes:
        reported: By the server.
        processed: By torch, after the temperature. What is needed.
        raw: By torch, before the temperature.
    """

    reported: Sequence[float]
    processed: Sequence[float]
    raw: Sequence[float]

    @property
    def gap(self) -> float:
        """Mean absolute difference from what is needed, in nats per token."""
        return _gap(self.reported, self.processed)

    @property
    def is_raw(self) -> bool:
        """Whether the server reports probabilities from before the temperature."""
        return _LEAST_CONTRAST * _gap(self.reported, self.raw) < self.gap

    def check(self, server: str, most_gap: float) -> None:
        """Raise VllmOtherNumbers if the server reports another kind, or its model is another one.

        Args:
            server: The server as messages name it.
            most_gap: Largest mean absolute difference, in nats per token, that rounding explains.
        """
        if self.gap <= most_gap:
            return
        if self.is_raw:
            raise VllmOtherNumbers(
                f"{server} reports log-probabilities from before the temperature: start it with --logprobs-mode "
                "processed_logprobs"
            )
        raise VllmOtherNumbers(
            f"{server}: the log-probabilities of its tokens differ from torch's by {self.gap:.3g} nats on average, "
            f"above {most_gap:.3g}: it serves other weights, reads adapters from elsewhere, computes with other "
            "numerics, or reports no log-probabilities (--logprobs-mode processed_logprobs)"
        )


def _gap(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / max(1, len(left))
