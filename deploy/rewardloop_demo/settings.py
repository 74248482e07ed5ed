"""Settings of `rewardloop demo`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rewardloop.formats.vocabulary import Algorithm
from rewardloop.process.settings import ProcessSettings


class DemoSettings(ProcessSettings):
    """Starts everything on free ports, lets simulated users ask and choose, and shows how the models learn.

    Ends by itself: with status 0 when enough versions were swapped in and both models got better, else 1.
    """

    basic_settings = (
        *("out", "algorithm", "seed", "reward_rounds", "policy_rounds"),
        *("signals_per_round", "rate", "minutes", "eval_prompts"),
    )

    out: Path = Field(Path("demo-results"), description="where the data, logs, table and plots of this run go")
    algorithm: Algorithm = Field("dpo", description="by which the policy learns")
    seed: int = Field(0, ge=0, description="of the starter models, the users, and their hidden taste")
    reward_rounds: int = Field(4, ge=1, description="reward versions to learn before it ends")
    policy_rounds: int = Field(4, ge=1, description="policy versions to learn before it ends")
    signals_per_round: int = Field(600, ge=50, description="new signals that start a reward round")
    rate: float = Field(60.0, gt=0, description="most signals a second of all users together")
    minutes: float = Field(9.0, gt=0, description="it ends after this long even if rounds are missing")
    eval_prompts: int = Field(300, ge=20, description="held-out prompts on which policies are compared")
