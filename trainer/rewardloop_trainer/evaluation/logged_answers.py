"""Judged answers of the ledger with their probabilities under the policy that gave them and under another one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardloop.formats.text import Encoder, turns
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.data.completions import Completion, encode_completions, sequence_logprobs
from rewardloop_trainer.data.preferences import NoSupport, Prompt
from rewardloop_trainer.evaluation.off_policy import judgements
from rewardloop_trainer.reward.evaluate import Floats

# Mean difference of log-probability a token, in nats, beyond which the logged answers are of another distribution than
# the trainer computes: another generation config, sampler, or version.
MOST_DIFFERENCE = 0.05


class UnlikeTheLog(ValueError):
    """Raised when a version does not give its logged answers the probabilities that were logged."""


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """A judged answer.

    Attributes:
        version: The policy version that gave it.
        prompt: The conversation that it answers.
        text: The answer.
        value: What people gave it, in [0, 1]; see `Judgement.value`.
        exposure: See `Judgement.exposure`.
        temperature: Temperature that it was sampled with.
        log_probability: Its log-probability as logged, in nats.
        tokens: Number of its sampled tokens, the end token included if it was sampled.
    """

    version: str
    prompt: Prompt
    text: str
    value: float
    exposure: float
    temperature: float
    log_probability: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Logged:
    """What the ledger has to say.

    Attributes:
        answers: The judged answers.
        left_out: Signals that say nothing about another policy, by reason.
    """

    answers: tuple[LoggedAnswer, ...]
    left_out: Mapping[str, int]


def logged_answers(events: Iterable[feedback_pb2.FeedbackEvent], newest: int) -> Logged:
    """Collect people's judgements of single answers, at most the ``newest``."""
    found: deque[LoggedAnswer] = deque(maxlen=newest)
    left_out: Counter[str] = Counter()
    for event in events:
        if event.source not in (feedback_pb2.SOURCE_HUMAN, feedback_pb2.SOURCE_UNSPECIFIED):
            left_out["not of a person"] += 1
            continue
        try:
            judged = list(judgements(event))
        except NoSupport as error:
            left_out[str(error)] += 1
            continue
        prompt, shown = turns(event.prompt), event.shown
        found.extend(
            LoggedAnswer(
                version=_version(event, each.response),
                prompt=prompt,
                text=event.responses[each.response],
                value=each.value,
                exposure=each.exposure,
                temperature=shown.temperature,
                log_probability=shown.log_probabilities[each.response],
                tokens=shown.token_counts[each.response],
            )
            for each in judged
        )
    return Logged(tuple(found), dict(left_out))


@dataclass(frozen=True, slots=True)
class Weighed:
    """Answers whose probability under both policies is known.

    Attributes:
        answers: The answers.
        weights: ``pi / mu`` of each, (answers,).
        left_out: Answers that were left out, by reason.
    """

    answers: tuple[LoggedAnswer, ...]
    weights: Floats
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Policy:
    """A causal LM in evaluation mode with its text layout."""

    model: Any
    encoder: Encoder


def weigh(
    answers: Sequence[LoggedAnswer], policy: Policy, logging: Callable[[str], Policy], token_budget: int
) -> Weighed:
    """Compute the importance weights of logged answers under another policy.

    Args:
        answers: The answers.
        policy: The policy to estimate.
        logging: Loads a version that gave answers. Raises `KeyError` if it is not there.
        token_budget: Most tokens of a forward pass, padding included.

    Raises:
        UnlikeTheLog: If a version gives its own answers other probabilities than were logged.
    """
    kept: list[LoggedAnswer] = []
    log_weights: list[float] = []
    left_out: Counter[str] = Counter()
    for version in sorted({answer.version for answer in answers}):
        of_version = [answer for answer in answers if answer.version == version]
        try:
            logger = logging(version)
        except KeyError:
            left_out[f"version {version or '(unknown)'} is not in the store"] += len(of_version)
            continue
        for temperature in sorted({answer.temperature for answer in of_version}):
            group = [answer for answer in of_version if answer.temperature == temperature]
            theirs, ours = (_sampled(each.encoder, group) for each in (logger, policy))
            both = [i for i in range(len(group)) if theirs[i] is not None and ours[i] is not None]
            left_out["encodes to other tokens than were sampled, or is too long"] += len(group) - len(both)
            if not both:
                continue
            rows, other_rows = ([each[i] for i in both] for each in (theirs, ours))
            mu = _logprobs(logger, rows, token_budget, temperature)
            _check(version, [group[i] for i in both], mu)
            pi = _logprobs(policy, other_rows, token_budget, temperature)
            kept += [group[i] for i in both]
            log_weights += (pi - mu).tolist()
    weights = np.exp(np.minimum(np.array(log_weights, dtype=np.float64), 700.0))
    return Weighed(tuple(kept), weights, {reason: count for reason, count in left_out.items() if count})


def _version(event: feedback_pb2.FeedbackEvent, response: int) -> str:
    return event.response_versions[response] if event.response_versions else event.policy_version.version


def _sampled(encoder: Encoder, answers: Sequence[LoggedAnswer]) -> list[Completion | None]:
    """Encode answers as they were sampled: an answer that was cut off has no end token.

    None stands for an answer that does not encode to as many tokens as were sampled.
    """
    encoded = encode_completions(encoder, [(answer.prompt, answer.text) for answer in answers])
    found: list[Completion | None] = []
    for completion, answer in zip(encoded, answers, strict=True):
        if completion is not None and completion.tokens == answer.tokens + 1:
            completion = Completion(completion.ids[:-1], completion.start)
        is_same = completion is not None and completion.tokens == answer.tokens
        found.append(completion if is_same else None)
    return found


def _logprobs(policy: Policy, rows: Sequence[Any], token_budget: int, temperature: float) -> Floats:
    pad = policy.encoder.format.pad
    return sequence_logprobs(policy.model, rows, pad, token_budget, temperature).double().numpy()


def _check(version: str, answers: Sequence[LoggedAnswer], computed: Floats) -> None:
    logged = np.array([answer.log_probability for answer in answers])
    tokens = np.array([answer.tokens for answer in answers])
    difference = float(np.median(np.abs(computed - logged) / tokens))
    if difference > MOST_DIFFERENCE:
        raise UnlikeTheLog(
            f"policy {version} gives its own logged answers other probabilities than were logged: they differ by "
            f"{difference:.3f} nats a token in the median of {len(answers)} answers, more than {MOST_DIFFERENCE:g}: "
            "its generation config or another sampler changed what was sampled"
        )
