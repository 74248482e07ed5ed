"""The trainer's own words, each list defined once: types, metrics, reports and alerts take them from here.

The words that the trainer shares with other processes are in `rewardloop.formats.vocabulary`.
"""

from __future__ import annotations

from typing import Literal, Self, TypeAlias, get_args

# The models of every trainer; its settings may name further reward models.
ModelName: TypeAlias = str
MODELS: tuple[ModelName, ...] = ("reward", "policy")

# The phases of a round in their order, after "idle", the phase of a model without a round.
Phase: TypeAlias = Literal["idle", "training", "trained", "exported", "gated", "published", "promoted"]
PHASES: tuple[Phase, ...] = get_args(Phase)

# A round itself returns an outcome. The loop may end it in two more ways, and also counts its failed attempts.
Outcome: TypeAlias = Literal["promoted", "refused"]
RoundEnd: TypeAlias = Literal[Outcome, "skipped", "given_up"]
RoundOutcome: TypeAlias = Literal[Outcome, "failed", "skipped", "given_up"]
ROUND_OUTCOMES: tuple[RoundOutcome, ...] = get_args(RoundOutcome)

# The rules that a refused candidate broke.
Rule: TypeAlias = Literal[
    "accuracy",
    "anchor",
    "benchmark",
    "best_so_far",
    "calibration",
    "distinct",
    "earlier_version",
    "empty_answers",
    "endless_answers",
    "evidence",
    "export",
    "floor",
    "judge",
    "kl",
    "length",
    "likelihood",
    "live_test",
    "no_data",
    "no_weights",
    "not_finite",
    "not_promoted",
    "other",
    "over_optimisation",
    "overfit",
    "parity",
    "perplexity",
    "red_team",
    "refusals",
    "repetition",
    "reward_hacking",
    "safety",
    "slice",
    "task",
    "win_rate",
]
RULES: tuple[Rule, ...] = get_args(Rule)

# The two versions that a gate compares.
Side: TypeAlias = Literal["candidate", "live"]
SIDES: tuple[Side, ...] = get_args(Side)

# Who judges a candidate without having trained it: a reward model that is kept apart, or people in a live test.
Witness: TypeAlias = Literal["judge", "live"]

# What finds people who do not judge by the texts, or who push something. `annotators` has a module for each kind.
Detector: TypeAlias = Literal["first", "longer", "button", "pace", "copies", "hands", "topic"]
DETECTORS: tuple[Detector, ...] = get_args(Detector)

# The ends of an interval, and the people of whom a figure is shown by how many percent are below them.
BOUNDS = ("estimate", "lower", "upper")
PERCENTILES = ("10", "50", "90")

# How far the log-probabilities of sampler and learner are apart, by the figures of a step.
SAMPLER_FIGURES = ("sampler_gap", "sampler_gap_max", "sampler_kl")

# Figures of the gates, by their names in a manifest.
REWARD_GATE_FIGURES = (
    "gate_pairs",
    "gate_thumbs",
    "gate_prompts",
    "gate_evidence",
    "gate_needed",
    *(
        f"gate_{side}_{figure}"
        for side in SIDES
        for figure in ("accuracy", "loss", "slope", "calibration_error", "auc", "auc_lower", "auc_upper")
    ),
    *(
        f"gate_{side}_random_{figure}"
        for side in SIDES
        for figure in ("accuracy", "accuracy_lower", "accuracy_upper", "choices")
    ),
    "gate_length_baseline",
    *(f"gate_{kind}gain{bound}" for kind in ("", "choice_", "thumb_") for bound in ("", "_lower", "_upper")),
    "gate_anchor_prompts",
    "gate_best_gain",
    "gate_accuracy_difference",
    "gate_accuracy_difference_lower",
    "gate_accuracy_difference_upper",
    "gate_parity",
    "gate_tolerance",
)
POLICY_GATE_FIGURES = (
    "gate_prompts",
    "gate_planned_prompts",
    *(
        f"gate_{rate}{bound}"
        for rate in ("win_rate", "score_win_rate", "earlier_win_rate")
        for bound in ("", "_lower", "_upper")
    ),
    "gate_kl",
    "gate_length_ratio",
    "gate_perplexity_ratio",
    *(f"gate_anchor_{figure}" for figure in ("kl", "length_ratio", "distinct_2", "perplexity_ratio")),
    *(
        f"gate_{side}_{figure}"
        for side in SIDES
        for figure in (
            *("reward", "tokens", "empty_share", "truncated_share"),
            *("distinct_2", "repeated_4", "nats_per_token"),
        )
    ),
)
# Of each kind of check, the figure of the one that came nearest to its threshold, or went furthest beyond it.
CHECK_FIGURES = tuple(
    f"gate_check_{rule}"
    for rule in (
        *("benchmark", "calibration", "floor", "length", "over_optimisation", "overfit", "red_team", "refusals"),
        *("safety", "slice", "task", "win_rate"),
    )
)
JUDGE_FIGURES = (
    "gate_judge_needed",
    *(f"gate_judge_{name}" for name in ("accuracy", "accuracy_lower", "auc", "auc_lower")),
)
LIVE_TEST_FIGURES = ("live_preferences", "live_people", "live_win_rate", "live_win_rate_lower", "live_win_rate_upper")


class Reason(str):
    """Why a candidate is refused: a text for people that carries the rule which was broken."""

    rule: Rule

    def __new__(cls, rule: Rule, text: str) -> Self:
        self = super().__new__(cls, text)
        self.rule = rule
        return self


def rule_of(reason: object) -> Rule:
    """Return the rule that the reason carries, or "other" if it carries none."""
    return reason.rule if isinstance(reason, Reason) else "other"
