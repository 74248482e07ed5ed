"""models: versions in the store, and which one is active."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from rewardloop_cli.connect import open_client
from rewardloop_cli.failures import UsageError
from rewardloop_client import NoModel, NotFound, PolicyUnavailable, Promotion, RewardloopClient, VersionInfo

_SHOWN_METRICS = 4


def list_versions(server: str, models: Sequence[str]) -> int:
    """0; 2 when the versions of one of several models cannot be had: those of the others are still shown.

    Raises RewardloopError when it was the only model.
    """
    table = Table("model", "version", "state", "parent", "age", "digest", "metrics")
    failed = False
    with open_client(server) as client:
        for model in models:
            try:
                versions = client.list_versions(model)
            except (NotFound, PolicyUnavailable, NoModel) as error:
                if len(models) == 1:
                    raise
                print(f"rewardloop: {model}: {error.reason}: {error}", file=sys.stderr)
                failed = True
                continue
            for info in versions:
                table.add_row(
                    model,
                    info.version,
                    info.state,
                    info.parent_version or "-",
                    age(info.create_time),
                    info.digest[:12],
                    figures(info),
                )
    Console(markup=False).print(table if table.row_count else "no versions")
    return 2 if failed else 0


def show(server: str, model: str, version: str) -> int:
    with open_client(server) as client:
        info = client.get_version(model, version)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"{info.model} version {info.version}, {info.state}, {age(info.create_time)} old")
    console.print(f"digest {info.digest}")
    if info.manifest_json:
        console.print(json.dumps(json.loads(info.manifest_json), indent=2, sort_keys=True))
    return 0


def promote(server: str, model: str, version: str, reason: str) -> int:
    with open_client(server) as client:
        _print_change(model, client.promote(model, version, reason=reason))
    return 0


def rollback(server: str, model: str, reason: str) -> int:
    with open_client(server) as client:
        _print_change(model, client.rollback(model, reason=reason))
    return 0


def holder(version: str, ends: bool) -> str | None:
    """Who is to have a role; None: nobody. Raises UsageError unless exactly one of the two is given."""
    if ends == bool(version):
        raise UsageError("either VERSION or --end")
    return version or None


def canary(server: str, model: str, version: str | None, share: float, reason: str) -> int:
    with open_client(server) as client:
        _print_role(model, "canary", client.set_canary(model, version, share=share, reason=reason), share)
    return 0


def shadow(server: str, version: str | None, share: float, reason: str) -> int:
    with open_client(server) as client:
        _print_role("reward", "shadow", client.set_shadow("reward", version, share=share, reason=reason), share)
    return 0


def active(client: RewardloopClient, model: str) -> VersionInfo | None:
    """The active version; None when there is none."""
    try:
        return client.get_version(model, timeout_s=3.0)
    except NotFound:
        return None


def age(moment: datetime | None) -> str:
    """How long ago, in the largest whole unit: "42 s", "3 min", "5 h", "2 d"."""
    if moment is None:
        return "?"
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def figures(info: VersionInfo) -> str:
    """The first few metrics of the manifest."""
    shown = sorted(info.metrics.items())[:_SHOWN_METRICS]
    return ", ".join(f"{name} {value:.3g}" for name, value in shown)


def _print_change(model: str, change: Promotion) -> None:
    before = f" (before: {change.previous_version})" if change.previous_version else ""
    print(f"{model} version {change.version.version} is {change.version.state}{before}")


def _print_role(model: str, role: str, info: VersionInfo | None, share: float) -> None:
    if info is None:
        print(f"{model} has no {role} now")
    else:
        print(f"{model} version {info.version} is the {role} for {share:.1%} of the requests")
