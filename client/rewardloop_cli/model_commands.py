"""The commands `rewardloop models` and their options. `models` does the work."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardloop_cli.server_option import DEFAULT_SERVER, Server

_Model = Annotated[str, typer.Argument(help="reward, policy, or another reward model's name", metavar="MODEL")]
_Store = Annotated[str, typer.Option(help="Read this model store itself, a path or URL; no server is asked.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Reason = Annotated[str, typer.Option(help="Who asks for the change, and why. The server keeps it with the change.")]

models = typer.Typer(help="See and change model versions.", rich_markup_mode=None, no_args_is_help=True)


@models.command("list")
def models_list(
    model: Annotated[
        str, typer.Argument(help="reward, policy, or another reward model; default: all", metavar="[MODEL]")
    ] = "",
    store: _Store = "",
    as_json: _Json = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """List the versions in the store, newest first."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.list_versions(server, [model] if model else None, store=store, as_json=as_json))


@models.command("show")
def models_show(
    model: _Model,
    version: Annotated[
        str,
        typer.Argument(help="Default: the active one; with --store the newest.", metavar="[VERSION]"),
    ] = "",
    show_all: Annotated[bool, typer.Option("--all", help="Print the whole manifest as JSON, too.")] = False,
    store: _Store = "",
    as_json: _Json = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show where a version came from and how it measured."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.show(server, model, version, show_all=show_all, store=store, as_json=as_json))


@models.command("promote")
def models_promote(
    model: _Model,
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    reason: _Reason = "by hand",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Make a version active, and return once the server serves it."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.promote(server, model, version, reason))


@models.command("rollback")
def models_rollback(model: _Model, reason: _Reason = "by hand", server: Server = DEFAULT_SERVER) -> None:
    """Make the version active that was active before."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.rollback(server, model, reason))


@models.command("canary")
def models_canary(
    version: Annotated[str, typer.Argument(help="Left out with --end.", metavar="[VERSION]")] = "",
    share: Annotated[float, typer.Option(help="Share of the requests, above 0 and below 1.")] = 0.05,
    end: Annotated[bool, typer.Option("--end", help="End the canary.")] = False,
    model: Annotated[str, typer.Option(help="reward, policy, or another reward model's name.")] = "reward",
    reason: _Reason = "by hand",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Let a version answer a share of the requests. Any promotion ends the canary."""
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.canary(server, model, command.holder(version, end), share, reason))


@models.command("shadow")
def models_shadow(
    version: Annotated[str, typer.Argument(help="Left out with --end.", metavar="[VERSION]")] = "",
    share: Annotated[float, typer.Option(help="Share of the requests, above 0 and at most 1.")] = 1.0,
    end: Annotated[bool, typer.Option("--end", help="End the shadow.")] = False,
    model: Annotated[str, typer.Option(help="reward, or another reward model's name.")] = "reward",
    reason: _Reason = "by hand",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Score a share of the requests with a second version, to compare both in the server's metrics.

    Callers never see its scores. Any promotion ends the shadow.
    """
    from rewardloop_cli import models as command
    from rewardloop_cli.failures import finish

    finish(lambda: command.shadow(server, model, command.holder(version, end), share, reason))
