"""``rewardloop demo``: the whole loop on this machine with simulated users, live progress, and a report at the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from rewardloop.formats.settings import ProcessSettings, parse
from rewardloop_local.demo_learning import Algorithm


class DemoSettings(ProcessSettings):
    """Starts everything on free ports, lets simulated users ask and choose, and shows how the models learn.

    Ends by itself: with status 0 when enough versions were swapped in and both models got better, else 1.
    """

    out: Path = Field(Path("demo-results"), description="where the data, logs, table and plots of this run go")
    algorithm: Algorithm = Field("dpo", description="by which the policy learns")
    seed: int = Field(0, ge=0, description="of the starter models, the users, and their hidden taste")
    reward_rounds: int = Field(4, ge=1, description="reward versions to learn before it ends")
    policy_rounds: int = Field(4, ge=1, description="policy versions to learn before it ends")
    signals_per_round: int = Field(600, ge=50, description="new signals that start a reward round")
    rate: float = Field(60.0, gt=0, description="most signals a second of all users together")
    minutes: float = Field(9.0, gt=0, description="it ends after this long even if rounds are missing")
    eval_prompts: int = Field(300, ge=20, description="held-out prompts on which policies are compared")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    settings = parse(DemoSettings, sys.argv[1:] if argv is None else argv, "rewardloop demo")

    from rewardloop.formats.log import configure_logging
    from rewardloop_local.demo_run import run

    configure_logging("warning", "console")
    return asyncio.run(run(settings))


if __name__ == "__main__":
    raise SystemExit(main())
