"""The settings of `rewardloop evaluate`. This module imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from rewardloop.formats.mixing.names import POLICY, REWARD, further_models
from rewardloop.process.settings import ProcessSettings
from rewardloop_trainer.chat_settings import AskedModel, JudgingModel
from rewardloop_trainer.policy.check_settings import RATERS, RaterSettings

# Thresholds and what they are about, of which only one kind of model is measured.
_OF_REWARD_MODELS = (
    *("benchmarks", "answers", "slice_margin", "benchmark_margin", "least_over_length", "most_calibration_error"),
    *("most_overfit", "most_over_optimisation"),
)
_OF_POLICIES = (
    *("judge", "ask", "people", "tasks", "suites", "rater", "red_team", "paraphrase", "regression"),
    *("least_win_rate", "least_judged_win_rate", "refusal_margin", "task_margin", "safety_margin", "most_red_team"),
)
# Settings that stay in the environment from one evaluation to the next.
_KEYS = ("api_key", "api_key_file")


class EvaluateSettings(ProcessSettings):
    """Measures a reward model or a policy on held-out signals and files, and writes a report."""

    basic_settings = (
        *("model", "store", "version", "directory", "against", "data", "out", "judges"),
        *("judge.endpoint", "benchmarks", "tasks", "suites"),
    )
    setting_groups = (
        ("model", "What is evaluated"),
        ("data", "What it is evaluated on"),
        ("judges", "Policies"),
        ("slice_margin", "Checks: exit status 1 if one fails"),
        ("out", "The process"),
    )

    model: str = Field(REWARD, description="what is evaluated: policy, reward, or another reward model by its name")
    store: str = Field("rewardloop-data/models", description="model store: a path or an fsspec URL")
    trusted_keys: str = Field("", description="file of public ed25519 keys (PEM): versions must be signed by one")
    version: str = Field("", description="the version that is evaluated")
    directory: str = Field(
        "",
        description="it, instead of --version: a Hugging Face directory, OUT/version of reward-train, OUT/policy of "
        "policy-train, or for a policy a file of answers {prompt, responses}",
    )
    against: str = Field("", description="what it is compared with: a version, or a directory or file as above")
    versions: tuple[str, ...] = Field(
        (), description="more versions: reward models to compare with, or the policies of a ladder; all: every version"
    )

    data: tuple[Path, ...] = Field(
        (), description="files of held-out signals or prompts: the rows of `rewardloop feedback import`"
    )
    work_dir: Path | None = Field(
        None, description="the trainer's work directory: its held-out part of the ledger is used instead of --data"
    )
    train: Path | None = Field(
        None, description="file of signals that training saw: for the bag of words, unknown domains and the overfit gap"
    )
    signals: int = Field(4_000, ge=1, description="most held-out signals, a random sample of all")
    benchmarks: tuple[Path, ...] = Field(
        (), description="reward: files of RewardBench, RewardBench 2, RM-Bench or JudgeBench"
    )
    answers: Path | None = Field(
        None, description="reward: {prompt, responses} with several answers each, for the curve of over-optimisation"
    )

    judges: tuple[str, ...] = Field(
        (),
        description="reward models that judge, each a version of reward, NAME@VERSION of another one, or a directory; "
        "the first one climbs the ladder",
    )
    judge: JudgingModel = JudgingModel.model_validate({})
    judge_dir: Path | None = Field(
        None,
        description="cache and budget of the chat model that judges, and in its directories rater and paraphrase those "
        "of the models that rate and paraphrase; default: the directory judge in out",
    )
    ask: Path | None = Field(
        None,
        description="file to write: the first answers of both policies as pairs for `rewardloop label import`, so that "
        "people judge them in the console",
    )
    people: tuple[Path, ...] = Field(
        (), description="people's answers to these pairs, who judge too: `rewardloop label export --format answers`"
    )
    prompts: int = Field(200, ge=2, description="most prompts that policies answer")
    responses: int = Field(4, ge=1, le=64, description="answers of each policy to each prompt")
    max_new_tokens: int = Field(64, ge=1, description="most tokens of an answer")
    tasks: tuple[str, ...] = Field((), description="tasks of lm-eval")
    task_dir: Path | None = Field(None, description="directory with the YAML files of tasks")
    task_limit: int = Field(0, ge=0, description="documents of each task; 0: all")
    suites: tuple[str, ...] = Field((), description="safety suites (JSONL); rewardloop: the one that is shipped")
    rater: RaterSettings = RaterSettings.model_validate({})
    red_team: int = Field(0, ge=0, description="answers that the policy may give to attacks; 0: no attack")
    paraphrase: AskedModel = AskedModel.model_validate({})
    regression: Path | None = Field(
        None, description="suite of attacks that worked (JSONL): the policy must pass it, and new ones are added to it"
    )

    slice_margin: float | None = Field(None, ge=0, lt=1, description="loss of accuracy that is accepted on a slice")
    benchmark_margin: float | None = Field(None, ge=0, lt=1, description="the same on a benchmark and its subsets")
    least_over_length: float | None = Field(
        None, ge=0, lt=1, description="by how much the accuracy must be above that of the longer answer"
    )
    most_calibration_error: float | None = Field(None, gt=0, le=1, description="most expected calibration error")
    most_overfit: float | None = Field(
        None, ge=0, lt=1, description="by how much the accuracy on training signals may be above that on held-out ones"
    )
    most_over_optimisation: float | None = Field(
        None,
        ge=0,
        description="by how many deviations the score of the first of judges may fall as ever better of answers are "
        "chosen",
    )
    least_win_rate: float | None = Field(
        None, ge=0, lt=1, description="what the win rate at like lengths must be above, by its interval"
    )
    least_judged_win_rate: float | None = Field(
        None, ge=0, lt=1, description="what the win rate by the chat model of judge must be above, by its interval"
    )
    refusal_margin: float | None = Field(None, ge=0, lt=1, description="rise of the share of refusals that is accepted")
    task_margin: float | None = Field(None, ge=0, lt=1, description="loss that is accepted on a task of lm-eval")
    safety_margin: float | None = Field(None, ge=0, lt=1, description="rise of failures that is accepted on a suite")
    most_red_team: float = Field(0.0, ge=0, le=1, description="most share of --regression that may work again")

    record: bool = Field(
        True, description="leave the figures of --version in the store, where `rewardloop models` shows them"
    )
    publish: bool = Field(False, description="also put the report into the store, where the console shows it")
    out: Path = Field(description="directory to write: report.html, report.json, metrics.prom and TensorBoard events")
    seed: int = Field(0, ge=0)
    torch_threads: int = Field(0, ge=0, description="threads of torch; 0: torch's choice")
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    log_format: Literal["console", "json"] = "console"

    @field_validator("model")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        """Raises ValueError for a name that no model can have."""
        if value not in (REWARD, POLICY):
            further_models([value])
        return value

    @model_validator(mode="after")
    def _measures_what_is_named(self) -> Self:
        others, kind = (_OF_REWARD_MODELS, "reward models") if self.model == POLICY else (_OF_POLICIES, "policies")
        if unread := [name for name in others if self._is_given(name)]:
            raise ValueError(f"{', '.join(unread)}: measured of {kind} alone, and model is {self.model}")
        if self.judges and not (self.model == POLICY or self.answers):
            raise ValueError("judges of a reward model judge over-optimisation: they need answers")
        if "most_red_team" in self.model_fields_set and self.regression is None:
            raise ValueError("most_red_team is a threshold for the suite regression: set both, or neither")
        return self

    def _is_given(self, name: str) -> bool:
        """Whether anything of a setting, or of a group of them, was given."""
        value = getattr(self, name)
        return _names_anything(value) if isinstance(value, BaseModel) else name in self.model_fields_set

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if bool(self.version) == bool(self.directory) and not (self.model == POLICY and self.versions):
            raise ValueError("name what is evaluated: either version or directory")
        if bool(self.data) == bool(self.work_dir):
            raise ValueError("name what it is evaluated on: either data or work_dir")
        if (self.suites or self.red_team or self.regression) and not self.rater.is_named:
            raise ValueError(f"suites and attacks need a rater: {RATERS}")
        if self.red_team and not self.suites:
            raise ValueError("red_team needs suites: attacks are made of those of their prompts that must be refused")
        if self.paraphrase.is_named and not self.red_team:
            raise ValueError("paraphrase writes attacks in other words: it needs red_team")
        if self.most_overfit is not None and not (self.train or self.work_dir):
            raise ValueError("most_overfit needs training signals: train, or those of work_dir")
        if self.most_over_optimisation is not None and not (self.answers and self.judges):
            raise ValueError("most_over_optimisation needs answers, and another reward model in judges")
        if (self.ask or self.people) and not (self.model == POLICY and self.against):
            raise ValueError("ask and people are about two policies: they need model policy and against")
        margins = {
            "benchmark_margin": self.benchmarks,
            "task_margin": self.tasks,
            "safety_margin": self.suites,
            "least_win_rate": self.judges or self.judge.is_named,
            "least_judged_win_rate": self.judge.is_named,
        }
        for name, what in margins.items():
            if getattr(self, name) is not None and not what:
                raise ValueError(f"{name} needs what it is about")
        compared = [name for name in (*margins, "slice_margin", "refusal_margin") if getattr(self, name) is not None]
        if compared and not self.against:
            raise ValueError(f"{', '.join(compared)}: a comparison needs against")
        return self


def _names_anything(group: BaseModel) -> bool:
    """Whether anything of a group of settings was given, but for keys."""
    given = {name: getattr(group, name) for name in group.model_fields_set if name not in _KEYS}
    return any(_names_anything(each) if isinstance(each, BaseModel) else True for each in given.values())
