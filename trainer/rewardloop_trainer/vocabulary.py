"""The trainer's fixed words: phases of a round and rules of refusal. Metrics and reports take them from here."""

from __future__ import annotations

from typing import Literal, Self, get_args

Rule = Literal[
    "accuracy",
    "distinct",
    "empty_answers",
    "endless_answers",
    "export",
    "kl",
    "length",
    "live_test",
    "no_data",
    "not_finite",
    "not_promoted",
    "other",
    "parity",
    "perplexity",
    "repetition",
    "reward_hacking",
    "win_rate",
]


RULES: tuple[Rule, ...] = get_args(Rule)
Phase = Literal["idle", "training", "trained", "exported", "gated", "published", "promoted"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Reason(str):
    """Reads as its text wherever a text goes."""

    rule: Rule

    def __new__(cls, rule: Rule, text: str) -> Self:
        self = super().__new__(cls, text)
        self.rule = rule
        return self


def rule_of(reason: object) -> Rule:
    """ "other" for a text that names none."""
    return reason.rule if isinstance(reason, Reason) else "other"
