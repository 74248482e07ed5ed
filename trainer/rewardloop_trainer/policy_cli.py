"""``rewardloop policy-train``: a policy learns once, by hand, and is written as a Hugging Face directory.

Several processes of one machine or many train it together under torchrun:
``torchrun --nproc-per-node 2 -m rewardloop_trainer.policy_cli --base ... --prompts ... --out ...``
Exit status: 0 all good, 1 the policy was written but its gate refuses to have it published, 2 nothing was written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rewardloop.formats.settings import ProcessSettings, parse
from rewardloop_trainer.policy_settings import PolicySettings


class PolicyTrainSettings(ProcessSettings, PolicySettings):
    """Trains a policy on prompts whose answers a server scores, or on pairs (dpo) or thumbs (kto). The same command
    goes on where a killed one stopped."""

    model_config = ProcessSettings.model_config

    base: str = Field("", description="where it starts: a Hugging Face directory or hub id, safetensors only")
    store: str = Field("", description="model store: of --version, and where --publish goes")
    signing_key: str = Field("", description="file of a private ed25519 key (PEM) that signs what is published")
    trusted_keys: str = Field("", description="file of public ed25519 keys (PEM), one of which signed --version")
    version: str = Field("", description="where it starts, instead of --base: the number of a policy in the store")
    prompts: Path = Field(
        description="JSONL, plain or gzipped, or Parquet: {prompt}, {messages}, or pairs or thumbs with a prompt"
    )
    out: Path = Field(description="directory to write: policy/, report/ and, while it runs, checkpoints/")
    server: str = Field("127.0.0.1:50051", description="gRPC address of the service that scores")
    heldout_share: float = Field(
        0.1, ge=0, lt=1, description="of the prompts, kept out for the win rate against the start; 0: none"
    )
    max_length: int = Field(0, ge=0, description="tokens of prompt and answer together; 0: what the start reads")
    publish: bool = Field(False, description="put the policy into the store if its gate lets it pass")
    draw_every: int = Field(10, ge=1, description="steps after which report/report.png is drawn again")
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch's choice")
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _has_a_start(self) -> Self:
        if bool(self.base) == bool(self.version):
            raise ValueError("name where it starts: --base, or --version with --store")
        if (self.version or self.publish) and not self.store:
            raise ValueError("--version and --publish need --store")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the flags name. Returns the exit status."""
    settings = parse(PolicyTrainSettings, sys.argv[1:] if argv is None else argv, "rewardloop policy-train")
    # Imported here: the settings above answer --help without torch.
    from rewardloop.formats.log import configure_logging
    from rewardloop.formats.store import StoreError
    from rewardloop_cli.source_file import SourceFile, UnreadableFile
    from rewardloop_client import InvalidAddress, RewardloopError
    from rewardloop_trainer.online.world import joined
    from rewardloop_trainer.policy_by_hand import train_by_hand
    from rewardloop_trainer.policy_rows import UnusableRows, read_policy_data

    configure_logging(settings.log_level, settings.log_format)
    try:
        data = read_policy_data(SourceFile.of(settings.prompts))
        with joined():
            return train_by_hand(settings, data)
    except RewardloopError as error:
        _say(f"no scores from {settings.server}: {error.reason or type(error).__name__}: {error}")
        _say("start a server with `rewardloop serve`, or name one with --server; the same command goes on from here")
    except (UnreadableFile, UnusableRows, InvalidAddress, StoreError, ValueError, ArithmeticError, OSError) as error:
        _say(str(error))
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from the last checkpoint")
        return 130
    return 2


def _say(message: str) -> None:
    for line in message.splitlines():
        print(f"rewardloop policy-train: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
