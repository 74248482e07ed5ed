"""How the demo's trainer learns: the defaults suit large models, one of a million parameters needs other steps."""

from __future__ import annotations

from typing import Literal

Algorithm = Literal["dpo", "ppo", "grpo", "online-dpo"]

# An answer of the starter has 30 tokens or so; what is longer than this has lost its end.
_ANSWER_TOKENS = 64
_ONLINE: dict[str, dict[str, str]] = {
    "ppo": {"steps": "25", "prompts": "16", "learning-rate": "1e-3", "critic.learning-rate": "5e-3"},
    "grpo": {"steps": "25", "prompts": "16", "learning-rate": "6e-4"},
    "online-dpo": {"steps": "25", "prompts": "16", "learning-rate": "6e-4"},
}


def train_args(algorithm: Algorithm, signals_per_round: int, seed: int) -> tuple[str, ...]:
    """Flags of ``rewardloop train``."""
    return (
        *("--reward-min-signals", str(signals_per_round), "--policy-min-signals", str(signals_per_round * 4 // 3)),
        *("--seed", str(seed), "--flush-age-s", "0.5", "--torch-threads", "1"),
        *("--reward.learning-rate", "5e-4", "--reward.head-learning-rate", "2e-3"),
        # What is new and some of the old: all of it again in each round would be learned by heart.
        *("--newest", str(signals_per_round + 200), "--replayed", str(signals_per_round // 2)),
        *("--heldout-share", "0.15", "--policy.gate.prompts", "100", "--policy.gate.responses", "2"),
        *("--policy.algorithm", algorithm, "--policy.learning-rate", "5e-4", "--policy.batch-pairs", "16"),
        *("--policy.online.max-new-tokens", str(_ANSWER_TOKENS), "--policy.online.minibatch", "32"),
        *(flag for name, value in _ONLINE.get(algorithm, {}).items() for flag in (f"--policy.online.{name}", value)),
    )
