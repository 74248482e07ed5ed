"""The commands that run a process. All arguments go to the process unchanged, `--help` included."""

from __future__ import annotations

import importlib
import sys

import typer
from typer.core import TyperCommand

from rewardloop.process.process_table import PROCESSES, Process

_OWN_PACKAGES = (
    "rewardloop",
    "rewardloop_data",
    "rewardloop_demo",
    "rewardloop_gateway",
    "rewardloop_local",
    "rewardloop_policy",
    "rewardloop_reward",
    "rewardloop_sampling",
    "rewardloop_server",
    "rewardloop_trainer",
)


class PassThrough(TyperCommand):
    """A command that parses none of its arguments."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.args = list(args)
        return []


def add_process_commands(app: typer.Typer, **groups: typer.Typer) -> None:
    """Add the command of every process to ``app``, or to the group of commands that its name begins with."""
    for process in PROCESSES:
        group, _, name = process.name.rpartition(" ")
        _add(groups[group] if group else app, name, process)


def _add(app: typer.Typer, name: str, process: Process) -> None:
    @app.command(name, cls=PassThrough, help=process.help, add_help_option=False)
    def run(ctx: typer.Context) -> None:
        root = ctx.find_root()
        for name in root.params if root is not ctx else ():
            if getattr(root.get_parameter_source(name), "name", "") == "COMMANDLINE":
                flag = "--" + name.replace("_", "-")
                print(f"rewardloop: put {flag} after {process.name}, which has settings of its own", file=sys.stderr)
                raise typer.Exit(2)
        raise typer.Exit(run_process(process, ctx.args))


def run_process(process: Process, argv: list[str]) -> int:
    """Run a process. Returns its exit status, or 2 if packages of its extra are missing, which it then names."""
    try:
        module = importlib.import_module(process.module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _OWN_PACKAGES:
            raise  # no extra is missing: this installation is broken, and the traceback says where
        print(
            f"rewardloop {process.name} needs more packages: pip install 'rewardloop[{process.extra}]'"
            f" ({missing} is missing)",
            file=sys.stderr,
        )
        return 2
    return int(module.main(argv) or 0)
