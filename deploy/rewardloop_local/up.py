"""``rewardloop up``: runs everything on this machine until it is told to stop."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from rewardloop.formats.mixing.names import further_models
from rewardloop.formats.redis_url import parse_redis_url
from rewardloop.process.settings import parse
from rewardloop_local.private_files import make_private, open_to_others
from rewardloop_local.security import Security, SecuritySettings


class UpSettings(SecuritySettings):
    """Runs Redis, the serving process, the policy worker, the trainer and the HTTP door on this machine, and keeps them
    running.

    On an empty data directory it first trains starter models (two to five minutes), or exports the bases that you name.
    """

    basic_settings = (
        *("data", "listen", "metrics_port", "redis_url", "reward_base", "policy_base"),
        *("export_args", "serve_args", "policy_args", "train_args", "gateway_listen", "log_format"),
    )
    setting_groups = (("data", "Data, addresses and bases"), ("export_args", "Flags of the processes that it starts"))

    data: Path = Field(Path("rewardloop-data"), description="directory of models, signals, logs and checkpoints")
    listen: str = Field("127.0.0.1:50051", description="gRPC address of the services")
    policy_listen: str = Field("127.0.0.1:50052", description="gRPC address of the policy worker")
    gateway_listen: str = Field("127.0.0.1:50080", description="address of the HTTP door; empty: none")
    metrics_port: int = Field(9464, ge=0, le=65535, description="Prometheus page of the server; 0: none")
    trainer_metrics_port: int = Field(9465, ge=0, le=65535, description="Prometheus page of the trainer; 0: none")
    policy_metrics_port: int = Field(9466, ge=0, le=65535, description="Prometheus page of the worker; 0: none")
    redis_url: str = Field(
        "",
        description="your own Redis; empty: an embedded one under the data directory, which other users cannot reach. "
        "All users of the machine can see arguments, so set REWARDLOOP_REDIS_URL instead if it has a password",
    )
    redis_memory_mib: int = Field(
        0, ge=0, description="most memory of the embedded Redis, in MiB; 0: a quarter of this machine's or container's"
    )
    reward_base: str = Field("", description="Hugging Face directory or hub id of the first reward model")
    policy_base: str = Field("", description="Hugging Face directory or hub id of the first policy")
    reward_models: list[str] = Field(
        [], description="reward models beside 'reward', such as helpful,harmless; each begins with the base of 'reward'"
    )
    mixtures: Path | None = Field(None, description="TOML file of mixtures of reward models and rules")
    seed: int = Field(0, description="seed of the starter models")
    export_args: str = Field(
        "",
        description="more flags for the export of the reward base, as one string: --export-args=--new-heads; "
        "'rewardloop export --help' lists them",
    )
    policy_export_args: str = Field(
        "", description="more flags for the export of the policy base: --policy-export-args='--layout plain'"
    )
    serve_args: str = Field("", description="more flags for 'rewardloop serve', as one string: --serve-args=--no-spin")
    policy_args: str = Field("", description="more flags for 'rewardloop policy-worker', as one string after '='")
    train_args: str = Field("", description="more flags for 'rewardloop train', as one string after '='")
    gateway_args: str = Field("", description="more flags for 'rewardloop gateway', as one string after '='")
    log_format: Literal["console", "json"] = Field("console", description="format of the log of every process")

    @field_validator("reward_models")
    @classmethod
    def _are_names(cls, value: list[str]) -> list[str]:
        """Raises ValueError for a name that no reward model can have."""
        return list(further_models(value))

    @field_validator("redis_url")
    @classmethod
    def _names_a_redis(cls, value: str) -> str:
        """Raises ValueError for a URL that cannot be used."""
        if value:
            parse_redis_url(value)
        return value

    @field_validator("*")
    @classmethod
    def _can_be_split(cls, value: object, info: ValidationInfo) -> object:
        """Raises ValueError if the flags of a process cannot be split as a shell does, as after an open quote."""
        if isinstance(value, str) and str(info.field_name).endswith("_args"):
            shlex.split(value)
        return value


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 after Ctrl-C, SIGTERM or a closed terminal, 1 if it could not start."""
    settings = parse(UpSettings, sys.argv[1:] if argv is None else argv, "rewardloop up")

    from rewardloop.process.log import configure_logging
    from rewardloop_local.proxies import exempt_loopback

    configure_logging("warning", settings.log_format)
    exempt_loopback()
    make_private()
    return asyncio.run(_run(settings))


def _styled(line: str) -> str:
    return f"[bold yellow]{line}[/bold yellow]" if "WARNING" in line else f"[dim]{line}[/dim]"


async def _run(settings: UpSettings) -> int:
    from rich.console import Console
    from rich.markup import escape

    from rewardloop_local.deployment import Deployment
    from rewardloop_local.plan import DeploymentError, DeploymentPlan
    from rewardloop_local.signals import stop_on_signals

    console = Console(stderr=True)

    def say(text: str) -> None:
        with suppress(OSError):  # a terminal that was closed must not keep the processes from being stopped
            console.print(text, soft_wrap=True)

    fields = settings.model_dump(exclude={"log_format", *SecuritySettings.model_fields})
    for name in ("export_args", "policy_export_args", "serve_args", "policy_args", "train_args", "gateway_args"):
        fields[name] = tuple(shlex.split(fields[name]))
    for name in ("serve_args", "policy_args", "train_args", "gateway_args"):
        fields[name] = ("--log-format", settings.log_format, *fields[name])
    plan = DeploymentPlan(**fields, security=Security.of(settings))
    if warning := open_to_others(plan.data):
        say(_styled(escape(warning)))
    deployment = Deployment(plan, on_phase=lambda phase: say(_styled(escape(phase))))
    stop = asyncio.Event()
    stop_on_signals(stop)
    try:
        if await deployment.start_unless(stop):
            for line in await deployment.served():
                say(escape(line))
            http = f", HTTP on {plan.gateway_listen}" if plan.gateway_listen else ""
            say(
                f"[bold]rewardloop is up[/bold] on {plan.listen}{http}; metrics on {plan.metrics_pages()}; "
                f"logs in {escape(str(plan.logs))}. "
                f"'{escape(plan.status_command())}' shows what it does; Ctrl-C stops it."
            )
            await stop.wait()
    except (DeploymentError, TimeoutError, OSError) as error:
        for line in str(error or "the services did not get ready in time").splitlines():
            say(f"[red]rewardloop up: {escape(line)}[/red]")
        return 1
    finally:
        await deployment.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
