"""The commands `models`: show the versions in the store, and change which one is active."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from rewardloop.formats.mixing.names import POLICY, REWARD
from rewardloop.formats.vocabulary import UNTRAINED_HEADS_NOTE
from rewardloop_cli.connect import open_client
from rewardloop_cli.failures import UsageError
from rewardloop_cli.stored_models import one_version, open_store, versions
from rewardloop_client import Evaluation, NoModel, NotFound, PolicyUnavailable, Promotion, RewardloopClient, VersionInfo

# Of a version's metrics, the one that tells most about it, by model.
_HEADLINES = {"reward": "gate_candidate_accuracy", "policy": "gate_win_rate"}
# Of an evaluation's figures, those that tell most, by model: the first that there is.
_EVALUATED = {
    "reward": ("accuracy",),
    "policy": ("length_controlled_win_rate", "win_rate", "safety_failures", "perplexity"),
}


def list_versions(server: str, models: Sequence[str] | None, *, store: str = "", as_json: bool = False) -> int:
    """Print the versions of each model, as a table or as JSON.

    Args:
        server: Whom to ask.
        models: The models' names; None for all that there are.
        store: Read this model store instead of asking the server.
        as_json: Print a JSON list of objects.

    Returns:
        0, or 2 if the versions of one of several models are not available; those of the others are shown.

    Raises:
        RewardloopError: The versions of the only model are not available.
        UsageError: The store cannot be read.
    """
    if store:
        opened = open_store(store)
        models = list(dict.fromkeys((REWARD, POLICY, *opened.models()))) if models is None else models
        found, failed = [info for model in models for info in versions(opened, model)], False
    else:
        found, failed = _of_server(server, models)
    if as_json:
        _print_json([_fields(info) for info in found])
        return 2 if failed else 0
    is_evaluated = any(info.evaluation is not None for info in found)
    columns = ("model", "version", "state", "parent", "age", "digest", "gate")
    table = Table()
    for name in (*columns, *(("evaluated",) if is_evaluated else ())):
        table.add_column(name, overflow="fold")  # a narrow terminal loses nothing of a digest or a figure
    for info in found:
        row = (info.model, info.version, info.state, info.parent_version or "-", age(info.create_time))
        more = (_evaluated(info),) if is_evaluated else ()
        table.add_row(*row, info.digest[:12], headline(info), *more)
    Console(markup=False).print(table if table.row_count else "no versions")
    return 2 if failed else 0


def _of_server(server: str, models: Sequence[str] | None) -> tuple[list[VersionInfo], bool]:
    """Return the versions that a server lists, and whether those of one of several models are not available."""
    found: list[VersionInfo] = []
    failed = False
    with open_client(server) as client:
        for model in client.models() if models is None else models:
            try:
                # A list has no manifests. Those of first versions say whether their heads are trained.
                found += [
                    info if info.parent_version else client.get_version(model, info.version)
                    for info in client.list_versions(model)
                ]
            except (NotFound, PolicyUnavailable, NoModel) as error:
                if models is not None and len(models) == 1:
                    raise
                print(f"rewardloop: {model}: {error.reason}: {error}", file=sys.stderr)
                failed = True
    return found, failed


def show(server: str, model: str, version: str, *, show_all: bool, store: str = "", as_json: bool = False) -> int:
    """Print a version in about thirty lines; with ``show_all`` its manifest as JSON, too; or all as JSON. Returns 0.

    Raises:
        RewardloopError: The server does not have the version.
        UsageError: The store cannot be read, or does not have the version.
    """
    if store:
        info = one_version(open_store(store), model, version)
    else:
        with open_client(server) as client:
            info = client.get_version(model, version)
    manifest = json.loads(info.manifest_json) if info.manifest_json else {}
    if as_json:
        _print_json({**_fields(info), "manifest": manifest})
        return 0
    print(f"{info.model} version {info.version}, {info.state}, {age(info.create_time)} old")
    if (warning := _untrained(info)) is not None:
        print(f"WARNING: {warning}")
    rows = {"digest": info.digest, "parent": info.parent_version or "none", **summary_of(manifest)}
    rows |= {f"metric {name}": f"{value:.6g}" for name, value in sorted(info.metrics.items())}
    if (found := info.evaluation) is not None:
        rows["evaluated"] = f"{age(found.evaluate_time)} ago" + (f", against {found.against}" if found.against else "")
        rows |= {"report": found.report_id} if found.report_id else {}
        rows |= {f"evaluation {name}": f"{value:.6g}" for name, value in sorted(found.figures.items())}
    _print_rows(rows)
    if show_all and manifest:
        print(json.dumps(manifest, indent=2, sort_keys=True))
    elif manifest:
        print("--all prints the whole manifest")
    return 0


def _print_rows(rows: Mapping[str, str]) -> None:
    """Print names and values: wrapped in a terminal, one line each for a pipe."""
    console = Console(markup=False, highlight=False)
    if console.is_terminal:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, value)
        console.print(table)
        return
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def _print_json(value: object) -> None:
    """Print a value as JSON, which knows no NaN and no infinities: they become null."""
    print(json.dumps(_without_nan(value), indent=2, allow_nan=False))


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(_without_nan, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fields(info: VersionInfo) -> dict[str, object]:
    return {
        "model": info.model,
        "version": info.version,
        "state": info.state,
        "parent": info.parent_version or None,
        "created_at": info.create_time.isoformat() if info.create_time else None,
        "digest": info.digest,
        "metrics": dict(info.metrics),
        "untrained_heads": _untrained(info) is not None,
        "evaluation": None if info.evaluation is None else _evaluation(info.evaluation),
    }


def _evaluation(found: Evaluation) -> dict[str, object]:
    return {
        "evaluated_at": found.evaluate_time.isoformat() if found.evaluate_time else None,
        "against": found.against or None,
        "figures": dict(found.figures),
        "report_id": found.report_id or None,
    }


def _evaluated(info: VersionInfo) -> str:
    """Return the figure of the last evaluation that tells most, with its interval if there is one; "-" without any."""
    figures = info.evaluation.figures if info.evaluation else {}
    for name in _EVALUATED.get(info.model, _EVALUATED[REWARD]):
        if name in figures:
            bounds = [figures[f"{name}_{end}"] for end in ("lower", "upper") if f"{name}_{end}" in figures]
            interval = f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if len(bounds) == 2 else ""
            return f"{name.replace('_', ' ')} {figures[name]:.3f}{interval}"
    return "-"


def _untrained(info: VersionInfo) -> str | None:
    """Return what the manifest says about score heads that no training has seen, or None."""
    notes = json.loads(info.manifest_json).get("notes") if info.manifest_json else None
    return notes.get(UNTRAINED_HEADS_NOTE) if isinstance(notes, dict) else None


def summary_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a manifest that people look at first. The files are their number and first names."""
    found = {
        name: str(manifest[name])
        for name in ("base", "created_at", "code_version", "seed", "max_length", "heads", "precision")
        if manifest.get(name) not in (None, "")
    }
    if isinstance(data := manifest.get("data"), dict):
        found["learned from"] = (
            f"{data.get('signals')} signals, {data.get('first_stream_id')} to {data.get('last_stream_id')}"
        )
    if isinstance(trunk := manifest.get("trunk"), dict):
        found["runs over the graph of"] = f"version {trunk.get('version')}"
    if isinstance(files := manifest.get("files"), dict):
        found["files"] = f"{len(files)}: {', '.join(sorted(files)[:6])}{', ...' if len(files) > 6 else ''}"
    if isinstance(notes := manifest.get("notes"), dict):
        found |= {f"note {name}": str(note) for name, note in sorted(notes.items())}
    return found


def promote(server: str, model: str, version: str, reason: str) -> int:
    with open_client(server) as client:
        _print_change(model, client.promote(model, version, reason=reason))
    return 0


def rollback(server: str, model: str, reason: str) -> int:
    with open_client(server) as client:
        active = client.get_version(model).version
        _print_change(model, client.rollback(model, reason=reason, expected_version=active))
    return 0


def holder(version: str, ends: bool) -> str | None:
    """Return the version that gets a role, or None to end the role. Raises UsageError unless one of both is given."""
    if ends == bool(version):
        raise UsageError("give either VERSION or --end")
    return version or None


def canary(server: str, model: str, version: str | None, share: float, reason: str) -> int:
    with open_client(server) as client:
        _print_role(model, "canary", client.set_canary(model, version, share=share, reason=reason), share)
    return 0


def shadow(server: str, model: str, version: str | None, share: float, reason: str) -> int:
    with open_client(server) as client:
        _print_role(model, "shadow", client.set_shadow(model, version, share=share, reason=reason), share)
    return 0


def active(client: RewardloopClient, model: str) -> VersionInfo | None:
    """Return the active version, or None if there is none."""
    try:
        return client.get_version(model, timeout_s=3.0)
    except NotFound:
        return None


def age(moment: datetime | None) -> str:
    """Return how long ago a moment was, in the largest whole unit: "42 s", "3 min", "5 h" or "2 d"."""
    if moment is None:
        return "?"
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def headline(info: VersionInfo) -> str:
    """Return the figure of the version's gate that tells most, such as "accuracy 0.71".

    Without one it is "random heads" if the heads are random, else "-".
    """
    name = _HEADLINES.get(info.model, _HEADLINES[REWARD])  # other names are of reward models
    if name not in info.metrics:
        return "-" if _untrained(info) is None else "random heads"
    return f"{name.removeprefix('gate_').removeprefix('candidate_').replace('_', ' ')} {info.metrics[name]:.3f}"


def _print_change(model: str, change: Promotion) -> None:
    before = f" (before: {change.previous_version})" if change.previous_version else ""
    print(f"{model} version {change.version.version} is {change.version.state}{before}")


def _print_role(model: str, role: str, info: VersionInfo | None, share: float) -> None:
    if info is None:
        print(f"{model} has no {role} now")
    else:
        print(f"{model} version {info.version} is the {role} for {share:.1%} of the requests")
