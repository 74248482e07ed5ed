"""How the demo's trainer learns: the trainer's defaults suit large models, and the demo's have a million parameters."""

from __future__ import annotations

from collections.abc import Mapping

from rewardloop.formats.vocabulary import Algorithm

# An answer of the starter has about 30 tokens. A longer one than this has not found its end.
_ANSWER_TOKENS = 64

# Flags of `rewardloop train` below `--policy.`, beside those that every algorithm gets.
_ONLINE = {"online.steps": "25", "online.prompts": "16"}
_OF_ALGORITHM: Mapping[Algorithm, Mapping[str, str]] = {
    "dpo": {},
    "simpo": {"simpo.learning-rate": "5e-4", "simpo.batch-pairs": "16"},
    "orpo": {"orpo.learning-rate": "5e-4", "orpo.batch-pairs": "16"},
    "kto": {"kto.learning-rate": "5e-4", "kto.batch-thumbs": "16"},
    "ppo": {**_ONLINE, "online.learning-rate": "1e-3", "online.critic.learning-rate": "5e-3"},
    "grpo": {**_ONLINE, "online.learning-rate": "6e-4"},
    "rloo": {**_ONLINE, "online.learning-rate": "6e-4"},
    "online-dpo": {**_ONLINE, "online.learning-rate": "6e-4"},
    "reinforce-pp": {**_ONLINE, "online.learning-rate": "6e-4"},
    "dr-grpo": {**_ONLINE, "online.learning-rate": "6e-4"},
    "dapo": {**_ONLINE, "online.learning-rate": "6e-4"},
}


def train_args(algorithm: Algorithm, signals_per_round: int, seed: int) -> tuple[str, ...]:
    """Flags of ``rewardloop train``."""
    return (
        *("--reward-min-signals", str(signals_per_round), "--policy-min-signals", str(signals_per_round * 4 // 3)),
        *("--seed", str(seed), "--flush-age-s", "0.5", "--torch-threads", "1"),
        *("--reward.learning-rate", "3e-4", "--reward.head-learning-rate", "1e-3"),
        # More signals than this would cost more time than the demo has, for less than a point.
        *("--reward.fresh-newest", "6000"),
        # A round learns from the new signals and some of the old. With all of the old ones again in each round, the
        # models would learn them by heart.
        *("--newest", str(signals_per_round + 200), "--replayed", str(signals_per_round // 2)),
        *("--heldout-share", "0.2", "--policy.gate.prompts", "300", "--policy.gate.responses", "2"),
        # A demo has too few signals for a judge of its own beside the reward model.
        *("--policy.gate.judge", "live"),
        *("--policy.algorithm", algorithm, "--policy.learning-rate", "5e-4", "--policy.batch-pairs", "16"),
        *("--policy.online.max-new-tokens", str(_ANSWER_TOKENS), "--policy.online.minibatch", "32"),
        *(part for name, value in _OF_ALGORITHM[algorithm].items() for part in (f"--policy.{name}", value)),
    )


def thumb_share(algorithm: Algorithm) -> float:
    """The share of the users' signals that are thumbs. KTO learns from thumbs, so it needs many of them."""
    return 0.5 if algorithm == "kto" else 0.08
