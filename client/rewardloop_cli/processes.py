"""Commands that are processes of their own: their arguments go on as they are, `--help` included."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

import typer
from typer.core import TyperCommand


@dataclass(frozen=True, slots=True)
class Process:
    """``module`` has ``main(argv) -> int``; ``extra`` is what `pip install 'rewardloop[extra]'` must have brought."""

    name: str
    module: str
    extra: str
    help: str


PROCESSES = (
    Process("up", "rewardloop_local.up", "local", "Everything on this machine, with an embedded Redis."),
    Process("down", "rewardloop_local.down", "local", "Ends what up runs, or has left running."),
    Process("demo", "rewardloop_demo.app", "local", "up with simulated users; ends with a table and plots."),
    Process("serve", "rewardloop_server.app", "server", "The scoring, feedback and model services."),
    Process("train", "rewardloop_trainer.app", "trainer", "The trainer daemon."),
    Process("policy-worker", "rewardloop_policy.app", "trainer", "The process that runs the policy."),
    Process("sft", "rewardloop_trainer.commands.sft", "trainer", "A base that learns from a file of conversations."),
    Process(
        "policy-train", "rewardloop_trainer.commands.policy_train", "trainer", "A policy that learns once, by hand."
    ),
    Process(
        "export", "rewardloop_trainer.commands.export", "trainer", "A Hugging Face model to a version in the store."
    ),
)

_OWN_PACKAGES = (
    "rewardloop",
    "rewardloop_data",
    "rewardloop_demo",
    "rewardloop_local",
    "rewardloop_policy",
    "rewardloop_sampling",
    "rewardloop_server",
    "rewardloop_trainer",
)


class _PassThrough(TyperCommand):
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.args = list(args)
        return []


def add_process_commands(app: typer.Typer) -> None:
    """Put every process's command into ``app``."""
    for process in PROCESSES:
        _add(app, process)


def _add(app: typer.Typer, process: Process) -> None:
    @app.command(process.name, cls=_PassThrough, help=process.help, add_help_option=False)
    def run(ctx: typer.Context) -> None:
        source = ctx.parent.get_parameter_source if ctx.parent is not None else ctx.get_parameter_source
        for name in ctx.parent.params if ctx.parent is not None else ():
            if getattr(source(name), "name", "") == "COMMANDLINE":
                flag = "--" + name.replace("_", "-")
                print(f"rewardloop: give {flag} after {process.name}, which has settings of its own", file=sys.stderr)
                raise typer.Exit(2)
        raise typer.Exit(run_process(process, ctx.args))


def run_process(process: Process, argv: list[str]) -> int:
    """The process's exit status; 2 with the install command when packages of its extra are missing."""
    try:
        module = importlib.import_module(process.module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _OWN_PACKAGES:
            raise  # not a missing extra: this installation is broken, and the traceback says where
        print(
            f"rewardloop {process.name} needs more packages: pip install 'rewardloop[{process.extra}]'"
            f" ({missing} is missing)",
            file=sys.stderr,
        )
        return 2
    return int(module.main(argv) or 0)
