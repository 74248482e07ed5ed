"""Reads the ledger, loads the policies, and prints the off-policy estimates and the position bias."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from rewardloop.formats.signatures import trusted_keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger import ledger_to_read
from rewardloop_trainer.commands.off_policy.settings import OffPolicySettings
from rewardloop_trainer.data.base_path import check_base_path
from rewardloop_trainer.data.logistic import sigmoid
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation.bandit import evaluate_bandit, shown_answers, text_features
from rewardloop_trainer.evaluation.likelihood import fit_logistic
from rewardloop_trainer.evaluation.logged_answers import LoggedAnswer, Policy, logged_answers, weigh
from rewardloop_trainer.evaluation.off_policy import (
    OffPolicy,
    PositionBias,
    Value,
    off_policy_value,
    position_bias,
)
from rewardloop_trainer.policy.rewards import score_groups
from rewardloop_trainer.policy.rollouts import Sampling, fitting_prompts, roll_out
from rewardloop_trainer.policy.start import PolicyStart, start_from_base, start_from_store
from rewardloop_trainer.reward.evaluate import Floats
from rewardloop_trainer.server_access import open_client

_LEAST_EFFECTIVE = 30.0
_MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Report:
    """What the command prints.

    Attributes:
        policy: The policy or bandit that was estimated.
        value: Its value.
        judgements: Judged answers that it rests on.
        left_out: Signals and answers that were left out, by reason.
        position: The position bias, or None if too few people gave choices with a known order.
    """

    policy: str
    value: OffPolicy
    judgements: int
    left_out: dict[str, int]
    position: PositionBias | None

    @property
    def is_thin(self) -> bool:
        """Whether so few judgements carry the estimate that its interval is not to be trusted."""
        return self.value.effective_samples < _LEAST_EFFECTIVE


def estimate(settings: OffPolicySettings) -> Report:
    """Estimate the policy or the bandit of the settings.

    Raises:
        NoLedger: There is no ledger, or no signal in it.
        ValueError: If too few judgements say something about it, with how many were left out and why.
        UnlikeTheLog: If a version's logged probabilities are not its own.
        StoreError, UnusableBase, OSError: If ledger, versions or base cannot be read.
        RewardloopError: If the server gave no scores.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    events = [row.event for row in ledger_to_read(settings.archive).scan()]
    if settings.bandit:
        return _estimate_bandit(settings, events)
    store = ModelStore(settings.store, trusted=trusted_keys(settings.trusted_keys))
    if settings.base:
        check_base_path(settings.base)
        start = start_from_base(settings.base, 0)
    else:
        start = start_from_store(store, settings.version, 0)
    logged = logged_answers(events, settings.newest)

    def load_version(version: str) -> Policy:
        if version not in map(str, store.versions("policy")):
            raise KeyError(version)
        return _policy(start_from_store(store, version, 0))

    policy = _policy(start)
    weighed = weigh(logged.answers, policy, load_version, settings.micro_batch_tokens)
    left_out = dict(Counter(logged.left_out) + Counter(weighed.left_out))
    answers = weighed.answers
    try:
        values = np.array([answer.value for answer in answers])
        model_values, policy_values = _modelled(settings, policy, answers, values) if settings.server else (None, None)
        value = off_policy_value(
            values,
            weighed.weights,
            [repr(answer.prompt) for answer in answers],
            exposures=np.array([answer.exposure for answer in answers]),
            model_values=model_values,
            policy_values=policy_values,
            most_weight=settings.most_weight,
        )
    except ValueError as error:
        raise _too_few(settings, error, left_out) from error
    name = f"policy {settings.version}" if settings.version else settings.base
    return Report(name, value, len(answers), left_out, position_bias(events))


def _estimate_bandit(settings: OffPolicySettings, events: Sequence[feedback_pb2.FeedbackEvent]) -> Report:
    """Estimate the bandit of the settings. Raises ValueError as `estimate` does."""
    shown, left_out = shown_answers(events[-settings.newest :], text_features)
    greedy = settings.bandit == "greedy"
    try:
        if not shown:
            raise ValueError("no signal is about an answer that was drawn at random from several")
        value = evaluate_bandit(
            shown,
            epsilon=settings.epsilon if greedy else None,
            seed=settings.seed,
            most_weight=settings.most_weight,
        )
    except ValueError as error:
        raise _too_few(settings, error, left_out) from error
    name = f"bandit, epsilon {settings.epsilon:g}" if greedy else "bandit, Thompson's rule"
    return Report(name, value, len(shown), left_out, position_bias(events))


def _too_few(settings: OffPolicySettings, error: ValueError, left_out: Mapping[str, int]) -> ValueError:
    why = "; ".join(f"{count:,} left out: {reason}" for reason, count in left_out.items())
    return ValueError(f"{settings.archive}: {error}{f' ({why})' if why else ''}")


def show(report: Report, output: Literal["table", "json"]) -> None:
    """Print the report on standard output."""
    if output == "json":
        print(json.dumps({**asdict(report), "is_thin": report.is_thin}, indent=2))
        return
    console, value = Console(), report.value
    table = Table(title=f"{report.policy}: what people would give its answers, 0 to 1")
    for column in ("estimate", "value", "95% interval"):
        table.add_column(column)
    rows = [("of the answers that were shown", value.logged), ("IPS", value.ips), ("SNIPS", value.snips)]
    if value.doubly_robust is not None:
        rows.append(("doubly robust", value.doubly_robust))
    for name, each in rows:
        table.add_row(name, f"{each.estimate:.3f}", _interval(each))
    console.print(table)
    console.print(
        f"{report.judgements:,} judgements of {value.clusters:,} prompts, worth {value.effective_samples:,.0f} "
        f"unweighed ones; {value.truncated_share:.1%} of the weights truncated"
    )
    if report.is_thin:
        console.print("Too few: the policy rarely gives the answers that were judged, so the intervals are too narrow.")
    for reason, count in report.left_out.items():
        console.print(f"{count:,} left out: {reason}")
    if (position := report.position) is None:
        console.print("position bias: unknown, because too few people gave choices with a display_order")
        return
    console.print(
        f"position bias: the response seen first won {position.first_wins.estimate:.1%} of choices "
        f"(95% {_interval(position.first_wins)}; {position.choices:,} choices, {position.people:,} people)"
    )


def _interval(value: Value) -> str:
    return f"{value.lower:.3f} to {value.upper:.3f}"


def _policy(start: PolicyStart) -> Policy:
    return Policy(start.load(), start.encoder)


def _modelled(
    settings: OffPolicySettings, policy: Policy, answers: Sequence[LoggedAnswer], values: Floats
) -> tuple[Floats, Floats]:
    """Return the reward model's value of each logged answer, and its mean value of answers that the policy gives.

    Scores become values by a logistic regression of the judged values on the scores.

    Raises:
        ValueError: If a prompt leaves the policy no room for an answer.
    """
    prompts: list[Prompt] = list(dict.fromkeys(answer.prompt for answer in answers))
    longest = max((answer.tokens for answer in answers), default=_MAX_NEW_TOKENS)
    if len(fitting_prompts(policy.encoder, prompts, longest)) < len(prompts):
        raise ValueError(f"some prompts leave the policy no room for answers of {longest} tokens: leave out --server")
    temperature = float(np.median([answer.temperature for answer in answers]))
    sampling = Sampling(settings.responses, longest, settings.seed, temperature)
    said = roll_out(policy.model, policy.encoder, prompts, sampling)
    place = {prompt: i for i, prompt in enumerate(prompts)}
    of_prompt: list[list[str]] = [[rollout.text for rollout in group] for group in said]
    starts = [len(group) for group in of_prompt]
    at = []
    for answer in answers:
        group = of_prompt[place[answer.prompt]]
        at.append(len(group))
        group.append(answer.text)
    with open_client(settings, settings.server) as server:
        rewards = score_groups(server, prompts, of_prompt)
    scores = [np.array([reward.score if reward else np.nan for reward in group]) for group in rewards]
    own = np.array([scores[place[answer.prompt]][i] for answer, i in zip(answers, at, strict=True)])
    columns = np.stack([np.ones_like(own), own], axis=1)
    intercept, slope = fit_logistic(columns, values, np.full(len(own), 1 / len(own)), np.zeros(2))
    means = [np.nanmean(sigmoid(intercept + slope * s[:n])) for s, n in zip(scores, starts, strict=True)]
    return sigmoid(intercept + slope * own), np.array([means[place[answer.prompt]] for answer in answers])
