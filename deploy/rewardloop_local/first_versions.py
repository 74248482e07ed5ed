"""Puts version 1 of each model into an empty store: starter models, or exports of the bases that the user names."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from rewardloop.formats.store import ModelStore
from rewardloop.process.setting_names import settings_of
from rewardloop_local import corpus
from rewardloop_local.plan import DeploymentPlan
from rewardloop_trainer.commands.export_settings import ExportSettings

_ANCHORS = 256

# Runs a Python module with arguments to its end, with its output in the log of this name. Raises if it fails.
RunModule = Callable[[str, str, Sequence[str]], Awaitable[None]]


async def publish_first_versions(plan: DeploymentPlan, run: RunModule, on_phase: Callable[[str], None]) -> None:
    """Do nothing if the store has a reward model; otherwise publish what the plan names, or the starter models."""
    if ModelStore(plan.store).versions("reward"):
        return
    reward_base, policy_base = plan.reward_base, plan.policy_base
    if not reward_base:
        on_phase("training the starter models (about two minutes)")
        starter = plan.data / "starter"
        await run("starter", "rewardloop_local.starter", ["--out", str(starter), "--seed", str(plan.seed)])
        reward_base = str(starter / "reward-base")
        policy_base = policy_base or str(starter / "policy-base")
        _write_anchors(plan)
    for model, base in (("reward", reward_base), ("policy", policy_base)):
        if base:
            on_phase(f"exporting {model} version 1")
            args = [*_defaults(), "--model", model, "--base", base, "--store", str(plan.store)]
            args += plan.export_args if model == "reward" else plan.policy_export_args
            if model == "reward":
                args += ("--anchors", str(plan.anchors)) if plan.anchors.exists() else ()
            await run(f"export-{model}", "rewardloop_trainer.commands.export", args)
            _say_choices(plan, model, on_phase)


def _say_choices(plan: DeploymentPlan, model: str, on_phase: Callable[[str], None]) -> None:
    """Say what the export has chosen, such as the length; its own output is in a log."""
    store = ModelStore(plan.store)
    for version in store.versions(model)[-1:]:
        for name, note in store.manifest(model, version).notes.items():
            on_phase(f"{model} version {version}: {name}: {note}")


def _defaults() -> list[str]:
    """Return the defaults of an export as flags, so that no variable of the environment changes the first versions.

    The signing key is left out: the trainer takes it from the environment, too, and every version needs the same one.
    """
    flags = []
    for setting in settings_of(ExportSettings):
        if setting.field.is_required() or setting.key == "signing_key":
            continue
        if not setting.flags.startswith(f"{setting.flag} /"):
            flags.append(f"{setting.flag}={setting.default}")
        elif setting.default is not None:  # no flag unsets a switch
            flags.append(setting.flag if setting.default else f"--no-{setting.flag[2:]}")
    return flags


def _write_anchors(plan: DeploymentPlan) -> None:
    """Fix the scale of the scores on answers of the corpus, for the starter and for every later version."""
    plan.anchors.parent.mkdir(parents=True, exist_ok=True)
    with plan.anchors.open("w") as file:
        for prompt, response in corpus.sft_examples(_ANCHORS, plan.seed):
            turns = [{"role": "user", "content": prompt}]
            file.write(json.dumps({"prompt": turns, "response": response}) + "\n")
