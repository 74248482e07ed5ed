"""Puts version 1 of each model into an empty store: starter models, or exports of the bases that the user names."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import get_args

from rewardloop.formats.store import ModelStore
from rewardloop.process.setting_names import settings_of
from rewardloop_local import corpus
from rewardloop_local.plan import DeploymentError, DeploymentPlan
from rewardloop_trainer.commands.export_notes import sentences
from rewardloop_trainer.commands.export_settings import ExportSettings

_ANCHORS = 256
_OF_UP = ("--base", "--store", "--model")  # `up` sets these itself

# Runs a Python module with arguments to its end, with its output in the log of this name. Raises if it fails.
RunModule = Callable[[str, str, Sequence[str]], Awaitable[None]]


async def publish_first_versions(plan: DeploymentPlan, run: RunModule, on_phase: Callable[[str], None]) -> None:
    """Publish version 1 of each model that has none and whose base the plan names.

    A store without a reward model gets the starter models if the plan names no base of one. A further reward model
    begins with the base of "reward".
    """
    store = ModelStore(plan.store)
    bases = {"reward": plan.reward_base, "policy": plan.policy_base}
    if not bases["reward"] and not store.versions("reward"):
        on_phase("training the starter models (two to five minutes on two cores)")
        starter = plan.data / "starter"
        await run("starter", "rewardloop_local.starter", ["--out", str(starter), "--seed", str(plan.seed)])
        bases["reward"] = str(starter / "reward-base")
        bases["policy"] = bases["policy"] or str(starter / "policy-base")
        _write_anchors(plan)
    for name in (name for name in plan.reward_models if not store.versions(name)):
        bases[name] = bases["reward"] or _base_of_reward(store)
    for model, base in bases.items():
        if base and not store.versions(model):
            on_phase(f"exporting {model} version 1")
            args = [*export_defaults(), "--model", model, "--base", base, "--store", str(plan.store)]
            try:
                await run(
                    f"export-{model}", "rewardloop_trainer.commands.export", [*args, *plan.flags_of_export(model)]
                )
            except DeploymentError as error:
                raise DeploymentError("\n".join([str(error), *_with_up(model, str(error))])) from error
            _say_choices(plan, model, on_phase)


def _base_of_reward(store: ModelStore) -> str:
    """Return the base of the newest version of "reward", from which a further reward model begins, too."""
    newest = store.versions("reward")[-1]
    base = store.manifest("reward", newest).base
    if not base:
        raise DeploymentError(
            f"the manifest of reward version {newest} names no base: publish the first versions of --reward-models "
            "with 'rewardloop export --model NAME'"
        )
    return base


def _with_up(model: str, said: str) -> list[str]:
    """Return the flags of an export that a message names, each as `rewardloop up` takes it."""
    flag = "--export-args" if model == "reward" else "--policy-export-args"
    settings = {setting.flag: setting for setting in settings_of(ExportSettings)}
    found = dict.fromkeys(
        f"{name} {value}" if value[:1].isupper() or value in get_args(settings[name].field.annotation) else name
        for name, value in re.findall(r"(--[a-z][a-z-]*)(?: ([\w.=,]+))?", said)
        if name in settings and name not in _OF_UP
    )
    return [f"give it to 'rewardloop up' as {flag}={shlex.quote(words)}" for words in found]


def _say_choices(plan: DeploymentPlan, model: str, on_phase: Callable[[str], None]) -> None:
    """Say what the export has chosen, such as the length; its own output is in a log."""
    store = ModelStore(plan.store)
    for version in store.versions(model)[-1:]:
        for sentence in sentences(store.manifest(model, version).notes):
            on_phase(f"{model} version {version}: {sentence}")


def export_defaults() -> list[str]:
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
