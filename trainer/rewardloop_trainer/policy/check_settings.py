"""Settings of the checks that can stand in a policy's gate. Imports no torch, for a fast --help."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardloop_trainer.chat_settings import JudgingModel

# The settings of which one names a rater, as messages list them.
RATERS = "rater.classifier, rater.phrases, rater.reward, or a chat model by rater.judge.endpoint or rater.judge.base"


class RaterSettings(BaseModel):
    """Who says that an answer is unsafe: a classifier, phrases, a reward model, a chat model; the strictest counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classifier: str = Field("", description="Hugging Face sequence classifier, such as one of toxicity: a directory")
    labels: tuple[str, ...] = Field((), description="labels of the classifier that mean unsafe")
    threshold: float = Field(
        0.5,
        gt=0,
        le=1,
        description="from which an answer is unsafe: the probability of the classifier, or 1 less the rating of the "
        "chat model, which is from 0 (worst) to 1",
    )
    phrases: tuple[str, ...] = Field((), description="an answer that holds one of these phrases is unsafe")

    reward: str = Field(
        "",
        description="reward model that rates: a version of reward, NAME@VERSION of another one, or a directory",
    )
    least_score: float | None = Field(
        None, description="an answer to which that reward model gives a lower score, as it is served, is unsafe"
    )
    judge: JudgingModel = JudgingModel.model_validate({})

    @model_validator(mode="after")
    def _raters_are_whole(self) -> Self:
        if self.classifier and not self.labels:
            raise ValueError("classifier needs labels: those of its labels that mean unsafe")
        if bool(self.reward) != (self.least_score is not None):
            raise ValueError("reward and least_score go together: set both, or neither")
        return self

    @property
    def is_named(self) -> bool:
        """Whether there is a rater."""
        return bool(self.classifier or self.phrases or self.reward or self.judge.is_named)


class PolicyChecks(BaseModel):
    """What a candidate must show beside its gate. A check without a threshold is not made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: float | None = Field(
        None, ge=0, lt=1, description="what the win rate at like lengths must be above, by its interval"
    )
    win_rate: float | None = Field(
        None, ge=0, lt=1, description="what the win rate by the chat model judge must be above, by its interval"
    )
    judge: JudgingModel = JudgingModel.model_validate({})
    refusals: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="rise of the share of refusals above the live policy's that is accepted on held-out prompts",
    )
    floor: float | None = Field(
        None,
        ge=0,
        description="by how much the mean value of each part of the mixture reward_model that has a floor may be below "
        "it, by its interval",
    )
    task: float | None = Field(
        None, ge=0, lt=1, description="loss against the live policy that is accepted on each task of lm-eval"
    )
    tasks: tuple[str, ...] = Field((), description="tasks of lm-eval")
    task_dir: Path | None = Field(None, description="directory with the YAML files of tasks")
    task_limit: int = Field(0, ge=0, description="documents of each task; 0: all")
    safety: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="rise of the rate of failures above the live policy's that is accepted on a suite, in each of its "
        "categories and languages",
    )
    suites: tuple[str, ...] = Field((), description="suites of prompts (JSONL); rewardloop: the one that is shipped")
    red_team: float | None = Field(
        None, ge=0, le=1, description="most share of the regression suite whose prompts get an unsafe answer"
    )
    regression: Path | None = Field(
        None, description="suite of the attacks that worked (JSONL); what `rewardloop evaluate` finds is added to it"
    )
    rater: RaterSettings = RaterSettings.model_validate({})
    prompts: int = Field(
        100, ge=2, description="most held-out prompts that are answered for length, win_rate, refusals and floor"
    )
    responses: int = Field(2, ge=1, le=16, description="answers to each prompt of a check")
    max_new_tokens: int = Field(64, ge=1, description="most tokens of an answer")
    least: int = Field(
        10, ge=2, description="prompts of a category below which those are judged with the other small ones"
    )
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="probability with which a loss as large as is accepted passes a check"
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if (self.win_rate is None) != (not self.judge.is_named):
            raise ValueError("win_rate is a threshold for judge, a chat model (endpoint or base): set both, or neither")
        if (self.task is None) != (not self.tasks):
            raise ValueError("task is a threshold for tasks: set both, or neither")
        if (self.safety is None) != (not self.suites):
            raise ValueError("safety is a threshold for suites: set both, or neither")
        if (self.red_team is None) != (self.regression is None):
            raise ValueError("red_team is a threshold for the suite regression: set both, or neither")
        if (self.suites or self.regression) and not self.rater.is_named:
            raise ValueError(f"a suite needs a rater: {RATERS}")
        return self

    @property
    def are_any(self) -> bool:
        """Whether there is a check."""
        compared = (self.length, self.win_rate, self.refusals, self.floor)
        return any(each is not None for each in (*compared, self.task, self.safety, self.red_team))
