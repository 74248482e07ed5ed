"""Compares what a plan names for first versions with a store that has versions, and says which version serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from rewardloop.formats.manifest import Manifest
from rewardloop.formats.store import ModelStore, StoreError
from rewardloop.formats.vocabulary import UNTRAINED_HEADS_NOTE
from rewardloop.process.settings import ProcessSettings, parse
from rewardloop_local.first_versions import export_defaults
from rewardloop_local.plan import DeploymentError, DeploymentPlan
from rewardloop_trainer.commands.export_settings import ExportSettings
from rewardloop_trainer.rounds.first_model import FirstModel, refusal_of_trainer
from rewardloop_trainer.settings import TrainSettings

if TYPE_CHECKING:
    from rewardloop_client import AsyncRewardloopClient

S = TypeVar("S", bound=ProcessSettings)

_FLAGS = {"reward": ("--reward-base", "--export-args"), "policy": ("--policy-base", "--policy-export-args")}


def refuse_ignored(plan: DeploymentPlan, redis_url: str, on_phase: Callable[[str], None]) -> None:
    """Refuse a base, and flags about first versions, that a store with versions would make ignored.

    Args:
        plan: What the user asks for.
        redis_url: The Redis that knows which versions are live.
        on_phase: Takes a line for each model whose flags fit its version, and have no effect any more.

    Raises:
        DeploymentError: If the live version came from something else. The text has the commands that publish it.
    """
    for model, (base_flag, args_flag) in _FLAGS.items():
        base = plan.reward_base if model == "reward" else plan.policy_base
        args = plan.export_args if model == "reward" else plan.policy_export_args
        if not (base or args) or (live := _live(plan, redis_url, model)) is None:
            continue
        wanted = _first_model(model, base, args, args_flag)
        if found := wanted.differences(live):
            given = " and ".join(flag for flag, value in ((base_flag, base), (args_flag, args)) if value)
            raise DeploymentError(_refusal(plan, wanted, live, given, found))
        if args:
            on_phase(f"{model} version {live.version} is there already: {args_flag} has no effect any more")
    if plan.train_args and (live := _live(plan, redis_url, "reward")) is not None:
        settings = _parsed(TrainSettings, plan.train_args, "--train-args")
        if reason := refusal_of_trainer(settings.reward, live, str(plan.store)):
            raise DeploymentError(f"--train-args: {reason}")


async def served_lines(plan: DeploymentPlan, client: AsyncRewardloopClient) -> list[str]:
    """Return for each model which version serves, and where it came from. Raises the client's errors."""
    store = ModelStore(plan.store)
    lines = []
    for model in (*_FLAGS, *plan.reward_models):
        if not (stored := store.versions(model)):
            lines.append(f"no {model} serves: the store has none")
            continue
        info = await client.get_version(model)
        manifest = Manifest.from_json(info.manifest_json)
        line = f"{model} version {info.version} serves: {origin(manifest)}"
        if UNTRAINED_HEADS_NOTE in manifest.notes:
            line += "; its score heads are new and random"
        if stored[-1] > int(info.version):
            promote = plan.client_command(f"models promote {model} {stored[-1]}")
            line += f"; version {stored[-1]} is newer and not live ('{promote}' makes it live)"
        lines.append(line)
    return lines


def origin(manifest: Manifest) -> str:
    """Return where a version came from: its base, what it learned from, and when it was published."""
    base = manifest.base or "a base that its manifest does not name"
    learned = f"trained on {manifest.data.signals:,} signals, " if manifest.data else ""
    when = datetime.fromisoformat(manifest.created_at).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"made from {base}, {learned}published {when}"


def _first_model(model: str, base: str, args: Sequence[str], args_flag: str) -> FirstModel:
    given = {word.partition("=")[0] for word in args}
    settings = _parsed(ExportSettings, [*export_defaults(), "--base", base or "x", "--store", "x", *args], args_flag)
    return FirstModel(
        model,
        base,
        settings.heads if model == "reward" and "--heads" in given else None,
        settings.max_length if "--max-length" in given else None,
    )


def _refusal(plan: DeploymentPlan, wanted: FirstModel, live: Manifest, given: str, found: Sequence[str]) -> str:
    model = wanted.model
    number = ModelStore(plan.store).versions(model)[-1] + 1
    export = FirstModel(model, wanted.base).export_command(live, str(plan.store), plan.flags_of_export(model))
    return "\n".join(
        (
            f"{given} would be ignored: {model} version {live.version} is live and {'; it '.join(found)}.",
            f"Leave {given} out to go on with version {live.version}, or name another --data directory.",
            f"To serve it from {plan.data}, publish it as version {number}: {export}",
            f"Then start without {given}, and make it live: {plan.client_command(f'models promote {model} {number}')}",
        )
    )


def _parsed(settings: type[S], args: Sequence[str], flag: str) -> S:
    """Read flags of a process. Raises DeploymentError if they are not valid; the reasons are printed by then."""
    try:
        return parse(settings, args, f"rewardloop up: {flag}")
    except SystemExit as error:
        raise DeploymentError(f"{flag} is not valid") from error


def _live(plan: DeploymentPlan, redis_url: str, model: str) -> Manifest | None:
    """Return the manifest of the live version, or of the newest if Redis names none or does not answer."""
    from rewardloop_trainer.archive.redis_link import REDIS_FAILURES, connect_redis
    from rewardloop_trainer.rounds.live_pointer import live_version

    store = ModelStore(plan.store)
    if not (stored := store.versions(model)):
        return None
    try:
        version = live_version(connect_redis(redis_url), store, model) or str(stored[-1])
    except REDIS_FAILURES:  # the processes wait for it; the store alone tells enough
        version = str(stored[-1])
    try:
        return store.manifest(model, version)
    except StoreError as error:
        raise DeploymentError(str(error)) from error
