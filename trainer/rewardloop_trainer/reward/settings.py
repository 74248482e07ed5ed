"""Settings of a reward model and of its training. Imports no torch, for a fast --help."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewardloop_trainer.learning.settings import REWARD_RATES, LearnerSettings
from rewardloop_trainer.reward.heads.choice import HeadChoice


class RewardTraining(LearnerSettings):
    """How one round trains the reward model. The defaults suit full fine-tuning of a MiniLM-class encoder."""

    epochs: int = Field(1, ge=0, description="passes of the trunk over the signals; 0: the start's linear fit alone")
    averaged_runs: int = Field(
        1, ge=1, description="runs from one start, each on an equal share of the signals, whose weights are averaged"
    )
    learning_rate: float | None = Field(None, gt=0, description=f"learning rate of the trunk; none: {REWARD_RATES}")
    head_learning_rate: float = Field(1e-3, gt=0, description="learning rate of the score heads")
    weight_decay: float = Field(0.01, ge=0)
    warmup_share: float = Field(
        0.06, ge=0, le=1, description="share of the steps in which the rate rises; it then falls linearly to 0"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradients")
    sequences_per_step: int = Field(32, ge=2, description="sequences in one optimizer step; a pair has two")
    micro_batch_tokens: int = Field(
        8192,
        ge=1,
        description="tokens whose activations are in memory at a time, padding included; what a step has beyond them "
        "is run twice",
    )
    megabatch_steps: int = Field(8, ge=1, description="steps whose examples are sorted by length together")
    dropout: bool = False
    over_length: Literal["truncate", "drop"] = "truncate"
    bootstrap: Literal["poisson", "bernoulli", "none"] = "poisson"
    most_person_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="most share of one annotator in the total weight of the signals, and with few annotators twice an "
        "equal share; 1: no cap",
    )
    most_source_share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="most share of one source other than people in the total weight, if people gave signals, too; "
        "1: no cap",
    )
    source_floor: float = Field(
        0.2,
        ge=0,
        le=1,
        description="signals of a judge, or of behaviour, are not learned from if their measured weight beside "
        "people's is shown to be below this; policies follow it too",
    )
    length_balance: bool = Field(False, description="weigh pairs so that length does not predict which response won")
    pointwise_weight: float = Field(0.5, ge=0, description="weight of a thumb or rating beside a pair")
    margin: float = Field(
        1.0, ge=0, description="nats by which the chosen response of the strongest preference should win at least"
    )
    tie_weight: float = Field(0.5, ge=0, description="weight of a tie beside a pair")
    centring: float = Field(0.01, ge=0, description="weight of the loss that holds the logits near the start's level")
    linear_start: int = Field(
        10_000, ge=0, description="most signals on which heads and words are fitted before the trunk learns; 0: none"
    )
    words: bool = Field(True, description="give every token a weight of its own in the scores, which the start fits")
    phrases: bool = Field(
        True,
        description="give every token and every pair of neighbouring tokens a weight that counts once in a sequence, "
        "which the start fits",
    )
    evaluate_every_steps: int = Field(
        0, ge=0, description="steps between two evaluations; 0: only at the end of each epoch"
    )
    patience: int = Field(2, ge=1, description="evaluations without a lower validation loss after which training stops")
    validation_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of training's questions by which the weights to keep are chosen, and from which nothing is "
        "learned; 0: the last step's weights are kept",
    )
    checkpoint_every_steps: int = Field(50, ge=0, description="steps between two checkpoints; 0: none")
    seed: int = 0

    def rate_for(self, parameters: int, *, are_adapters: bool) -> float:
        """Return the trunk's rate: the one that was set, or the usual one for so many of its parameters that learn."""
        return self.learning_rate or REWARD_RATES.of(parameters, are_adapters=are_adapters)

    @property
    def share_apart(self) -> float:
        """Share of the questions that is taken apart; none without steps among which weights are chosen."""
        return self.validation_share if self.epochs else 0.0


class RewardChecks(BaseModel):
    """What a candidate must show beside its gate. A check without a threshold is not made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="loss of accuracy against the live version that is accepted on a benchmark and on each subset",
    )
    benchmarks: tuple[Path, ...] = Field(
        (), description="files of benchmarks: rows of RewardBench, RewardBench 2, RM-Bench or JudgeBench"
    )
    slice: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="loss of accuracy against the live version that is accepted on each slice of the held-out signals: "
        "by tag, source and difference of length",
    )
    length: float | None = Field(
        None, ge=0, lt=1, description="by how much the accuracy must be above that of preferring the longer answer"
    )
    calibration: float | None = Field(
        None, gt=0, le=1, description="most expected calibration error on held-out choices"
    )
    overfit: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="by how much the accuracy on training signals may be above that on held-out ones, by its interval",
    )
    over_optimisation: float | None = Field(
        None,
        ge=0,
        description="by how many deviations the score of judge may fall as ever better answers by the candidate are "
        "chosen, by its interval",
    )
    answers: Path | None = Field(
        None, description="{prompt, responses} with several answers each, of which over_optimisation chooses"
    )
    judge: str = Field(
        "",
        description="reward model that judges over_optimisation: a version of reward, NAME@VERSION of another one, or "
        "a directory",
    )
    least: int = Field(
        30, ge=2, description="questions of a subset or slice below which those are judged with the other small ones"
    )
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="probability with which a loss as large as is accepted passes a check"
    )

    @model_validator(mode="after")
    def _has_its_files(self) -> Self:
        if (self.benchmark is None) != (not self.benchmarks):
            raise ValueError("benchmark is a threshold for the files of benchmarks: set both, or neither")
        if len({self.over_optimisation is None, self.answers is None, not self.judge}) > 1:
            raise ValueError("over_optimisation needs answers and judge: set all, or none")
        return self

    @property
    def are_any(self) -> bool:
        """Whether there is a check."""
        compared = (self.benchmark, self.slice, self.length, self.calibration)
        return any(each is not None for each in (*compared, self.overfit, self.over_optimisation))


class RewardHyperparameters(RewardTraining, HeadChoice):
    """How a reward model is made and learns. A later version keeps the heads, pooling and length of its parent."""

    base: str = Field(
        "", description="Hugging Face directory or hub id that the first model of an empty store is made from"
    )
    heads: int = Field(
        4, ge=1, description="score heads of a first model; the spread of their scores is the uncertainty"
    )
    pooling: Literal["auto", "mean", "layers", "cls"] = Field(
        "auto",
        description="how a first model pools an encoder's states; auto: the embeddings, a middle and the last layer "
        "(layers)",
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="most tokens of prompt and response in a first model; default: all that the base reads, to 2048",
    )
    delta: bool = Field(
        False, description="with method lora, publish adapters and heads over an unchanged graph if there is one"
    )
    precision: Literal["float32", "int8", "float16", "bfloat16"] = Field(
        "float32", description="precision of the published graph, used if it orders held-out pairs as float32 does"
    )
    fresh_growth: float = Field(
        1.5,
        ge=0,
        description="a round starts from the base, and learns from signals of its whole life, when these have grown by "
        "this factor since the last such version; 0: never",
    )
    fresh_newest: int = Field(25_000, ge=1, description="newest training records of a round that starts from the base")
    fresh_older: int = Field(
        25_000, ge=0, description="older training records of such a round, drawn from all that are kept"
    )
    length_control: float = Field(
        0.0,
        ge=0,
        le=1,
        description="most of the scores' dependence on log length that calibration removes, as far as held-out pairs "
        "among which length decides nothing then fit better",
    )
    gate_tolerance: float = Field(
        0.02, ge=0, lt=1, description="loss of held-out accuracy in the sample that a gate accepts"
    )
    gate_alpha: float = Field(
        0.04, gt=0, lt=0.5, description="probability with which a version no better than the live one passes the gate"
    )
    gate_margin: float = Field(
        0.0, ge=0, description="loss of held-out log-likelihood, in nats, that the gate accepts; 0 asks for a gain"
    )
    gate_prompts: int = Field(50, ge=2, description="independent held-out prompts below which the gate decides nothing")
    checks: RewardChecks = RewardChecks.model_validate({})

    @model_validator(mode="after")
    def _fits_its_method(self) -> Self:
        if self.quantised_base != "none":
            raise ValueError("quantised_base is for policies: a reward model's graph is made of float weights")
        if self.delta and self.method != "lora":
            raise ValueError("delta needs method lora: other weights cannot be published over an unchanged graph")
        if 0 < self.fresh_growth <= 1:
            raise ValueError("fresh_growth must be above 1, or 0: otherwise every round would start from the base")
        if self.averaged_runs > 1 and self.method == "lora":
            raise ValueError("averaged_runs above 1 needs method full: adapters of several runs have no average")
        if self.averaged_runs > 1 and self.shard:
            raise ValueError("averaged_runs above 1 needs whole weights in each process: leave shard off with it")
        return self
