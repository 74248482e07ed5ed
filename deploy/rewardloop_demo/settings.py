"""Settings of `rewardloop demo`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rewardloop.formats.vocabulary import Algorithm
from rewardloop.process.settings import ProcessSettings


class DemoSettings(ProcessSettings):
    """Starts everything on free ports, lets simulated users ask and choose, and shows how the models learn.

    It ends by itself. Its status is 0 if a new version of each model was swapped in and both got better; else it
    is 1.
    """

    basic_settings = (
        *("out", "algorithm", "seed", "reward_rounds", "policy_rounds"),
        *("signals_per_round", "rate", "minutes", "eval_prompts"),
    )

    out: Path = Field(Path("demo-results"), description="directory of this run's data, logs, plots and numbers")
    algorithm: Algorithm = Field("grpo", description="algorithm by which the policy learns")
    seed: int = Field(0, ge=0, description="seed of the starter models, the users, and their hidden taste")
    reward_rounds: int = Field(2, ge=1, description="number of reward versions to learn before it ends")
    policy_rounds: int = Field(3, ge=1, description="number of policy versions to learn before it ends")
    signals_per_round: int = Field(600, ge=50, description="number of new signals that start a reward round")
    rate: float = Field(60.0, gt=0, description="most signals a second of all users together")
    minutes: float = Field(20.0, gt=0, description="minutes after which it ends, even if versions are missing")
    eval_prompts: int = Field(
        684, ge=20, description="number of held-out prompts on which models are measured; there are 684"
    )
