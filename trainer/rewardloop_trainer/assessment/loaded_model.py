"""Loads a reward model that is measured, judges or rates: a version of a store, its directory, or a base."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from rewardloop.formats.mixing.names import REWARD, is_name
from rewardloop.formats.store import MANIFEST, TOKENIZER, TORCH, Calibration, Manifest, ModelStore
from rewardloop.formats.text import Encoder
from rewardloop.formats.text_format import read_text_format
from rewardloop_reward.unusable_base import UnusableBase
from rewardloop_trainer.data.base_path import check_base_path
from rewardloop_trainer.data.length_share import LengthShare
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, read_evidence
from rewardloop_trainer.evaluation.policy_judge import PolicyJudge
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import start_from

RUN = "run.json"
_VERSION = re.compile(r"(?:(?P<model>[^@/]+)@)?(?P<version>[0-9]+)")


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """A reward model in torch with the length share that its calibration takes off.

    Attributes:
        name: Such as "reward 4".
        model: The model.
        encoder: Its tokenizer and text layout.
        calibration: How it is served: its scale, its offset and its length share.
        parent: The version before it in its store; "" if it is not known.
        has_new_heads: Whether its heads are random, because its base has none.
    """

    name: str
    model: RewardModel
    encoder: Encoder
    calibration: Calibration
    parent: str = ""
    has_new_heads: bool = False

    @property
    def length(self) -> LengthShare:
        return LengthShare.of_calibration(self.calibration)

    @property
    def judge(self) -> PolicyJudge:
        return PolicyJudge(self.model, self.encoder, self.length)

    def read(self, evidence: Evidence) -> Readings:
        return read_evidence(self.model, self.encoder, evidence, self.length)

    def score(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return the scores that a server gives: calibrated ones; None as of `PolicyJudge.score`."""
        scale, offset = self.calibration.scale, self.calibration.offset
        logits = self.judge.score(prompts, texts)
        return [[None if each is None else scale * each + offset for each in group] for group in logits]


def named_version(named: str, model: str = REWARD) -> tuple[str, str] | None:
    """Return the model and the version that a setting names: "4" is one of ``model``, "harmless@4" names its own.

    Returns:
        None if it names a directory or a file.
    """
    match = _VERSION.fullmatch(named)
    if match is None or not is_name(match["model"] or model):
        return None
    return match["model"] or model, match["version"]


def load_reward(store: ModelStore, named: str, model: str = REWARD, seed: int = 0) -> LoadedReward:
    """Load a reward model.

    Args:
        store: The model store.
        named: A version, as `named_version` reads it; the directory of a version; or a Hugging Face directory.
        model: The model whose version a number alone is.
        seed: Heads that a base does not have are drawn with it.

    Raises:
        StoreError, UnusableBase, NothingToTrain: If it cannot be loaded.
    """
    learning = RewardHyperparameters.model_validate({})
    if (found := named_version(named, model)) is not None:
        name, version = found
        start, manifest = start_from(store, version, learning, seed, name), store.manifest(name, version)
        calibration = manifest.calibration or Calibration()
        return LoadedReward(f"{name} {version}", start.model.eval(), start.encoder, calibration, manifest.parent or "")
    path = Path(named)
    if (path / TORCH).is_dir():
        made = _manifest_beside(path)
        if made.trunk is not None:
            raise UnusableBase(f"{path}: is a delta over another version: name the version of its store")
        encoder = Encoder(
            Tokenizer.from_file(str(path / TOKENIZER)), read_text_format(made.text_format), made.max_length
        )
        name = path.resolve().parent.name if path.name == "version" else path.name
        calibration = made.calibration or Calibration()
        return LoadedReward(name, RewardModel.load(path / TORCH).eval(), encoder, calibration)
    check_base_path(named)
    start = start_from(store, None, learning.model_copy(update={"base": named}), seed)
    new = start.model.has_new_heads
    return LoadedReward(path.name, start.model.eval(), start.encoder, Calibration(), has_new_heads=new)


def _manifest_beside(path: Path) -> Manifest:
    """The manifest of a version's directory: its own, or the one in the ``run.json`` of the run that wrote it."""
    if (path / MANIFEST).exists():
        return Manifest.from_json((path / MANIFEST).read_text())
    run = path.parent / RUN
    if run.exists() and "manifest" in (found := json.loads(run.read_text())):
        return Manifest.from_json(json.dumps(found["manifest"]))
    raise UnusableBase(f"{path}: has neither {MANIFEST} nor a {RUN} beside it that says how it reads texts")
