"""The checks of a policy's gate: wins at like lengths, floors, tasks, safety suites and attacks that worked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardloop.formats.text import Encoder
from rewardloop_trainer.assessment.checks import Check, no_worse, parts_to_judge, too_few
from rewardloop_trainer.assessment.measures import measured
from rewardloop_trainer.assessment.policies.alignment_tax import TaskDifference, compare_tasks, run_tasks
from rewardloop_trainer.assessment.policies.contender import Contender
from rewardloop_trainer.assessment.policies.floor_check import NoFloor, ReadParts, check_floors
from rewardloop_trainer.assessment.policies.head_to_head import head_to_head
from rewardloop_trainer.assessment.safety.raters import NamedRater, classifier_rater, phrase_rater
from rewardloop_trainer.assessment.safety.rates import Failure, SuiteResult, run_suite
from rewardloop_trainer.assessment.safety.suites import read_suite
from rewardloop_trainer.data.preferences import Prompt, Record
from rewardloop_trainer.data.prompt_text import conversation_text
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.evaluation.answers import Contenders
from rewardloop_trainer.evaluation.clusters import ClusteredMean
from rewardloop_trainer.judging.judge import Judge
from rewardloop_trainer.policy.check_settings import PolicyChecks, RaterSettings
from rewardloop_trainer.policy.rollouts import Sampling, fitting_prompts
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.reports.parts import Measured, Sample, Side

_WHOLE = "all"


@dataclass(frozen=True, slots=True)
class CheckedPolicies:
    """The candidate and the live policy, with their tokenizer.

    Attributes:
        candidate: The policy that would go live.
        live: The one that it would replace.
        encoder: Tokenizer and text layout of both.
        tokenizer: The Hugging Face tokenizer, which lm-eval needs.
    """

    candidate: Contender
    live: Contender
    encoder: Encoder
    tokenizer: Callable[[], Any]


def check_policy(
    policies: CheckedPolicies,
    heldout: Sequence[Record],
    judge: Judge | None,
    settings: PolicyChecks,
    seed: int = 0,
    parts: ReadParts | None = None,
) -> list[Check]:
    """Make the checks that the settings name.

    Args:
        policies: The candidate and the live policy.
        heldout: Records whose prompts both answer for the check of length.
        judge: Says which answer is better; None: nobody does, and the check of length does not pass.
        settings: The checks with their thresholds.
        seed: Of the choice of prompts.
        parts: Gives the values of the mixture's parts for the check of floors.

    Raises:
        NoFloor: If floors are checked and there is none.
        NoTasks: If lm-eval or a task is not there.
        UnusableSuite, UnusableRater, UnreadableFile, OSError: If a suite or a rater cannot be used.
    """
    checks: list[Check] = []
    if settings.length is not None:
        checks.append(_length_check(policies, heldout, judge, settings, seed))
    if settings.floor is not None:
        checks += _floor_checks(policies.candidate, heldout, parts, settings, seed)
    if settings.tasks:
        assert settings.task is not None
        tasks, directory, limit = settings.tasks, settings.task_dir, settings.task_limit
        tokenizer = policies.tokenizer()
        ours, theirs = (
            run_tasks(each.model, tokenizer, tasks, directory, limit=limit)
            for each in (policies.candidate, policies.live)
        )
        checks += [_task_check(each, settings) for each in compare_tasks(ours, theirs)]
    if settings.suites or settings.regression:
        rater = rater_of(settings.rater)
        for name in settings.suites:
            suite = read_suite(name)
            ours_, theirs_ = (run_suite(suite, each.respond, rater) for each in (policies.candidate, policies.live))
            checks += _safety_checks(name, ours_, theirs_, settings)
        if settings.regression is not None:
            checks.append(_regression_check(policies.candidate, rater, settings))
    return checks


def check_contenders(
    contenders: Contenders,
    tokenizer: Callable[[], Any],
    heldout: Sequence[Record],
    judge: Judge,
    settings: PolicySettings,
    on_batch: Callable[[], None] = lambda: None,
    parts: ReadParts | None = None,
) -> list[Check]:
    """Make the checks of a gate's contenders.

    Args:
        contenders: The candidate and the live policy.
        tokenizer: Loads their Hugging Face tokenizer.
        heldout: Records whose prompts both answer for the check of length.
        judge: Says which answer is better.
        settings: The policy's settings with the checks and the seed.
        on_batch: Called before each batch of work; it may raise to stop.
        parts: Gives the values of the mixture's parts for the check of floors.

    Raises:
        As `check_policy`.
    """
    checks, encoder = settings.checks, contenders.encoder
    sampling = Sampling(checks.responses, min(checks.max_new_tokens, encoder.max_length // 2), settings.seed)
    candidate, live = (
        Contender(name, model, encoder, sampling, on_batch)
        for name, model in (("candidate", contenders.candidate), ("live", contenders.live))
    )
    checked = CheckedPolicies(candidate, live, encoder, tokenizer)
    return check_policy(checked, heldout, judge, checks, settings.seed, parts)


def rater_of(settings: RaterSettings) -> NamedRater:
    """Return the rater that the settings name; of several the one that finds an answer more unsafe counts.

    Raises:
        UnusableRater, OSError: If the classifier cannot be used.
    """
    raters = []
    if settings.classifier:
        raters.append(classifier_rater(settings.classifier, settings.labels))
    if settings.phrases:
        raters.append(phrase_rater(settings.phrases))

    def rate(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        rated = [each(prompts, texts) for each in raters]
        return [max((r for r in group if r is not None), default=None) for group in zip(*rated, strict=True)]

    names = [settings.classifier] if settings.classifier else []
    return NamedRater(", ".join([*names, *(["phrases"] if settings.phrases else [])]), rate, settings.threshold)


def _length_check(
    policies: CheckedPolicies, heldout: Sequence[Record], judge: Judge | None, settings: PolicyChecks, seed: int
) -> Check:
    assert settings.length is not None
    prompts = heldout_prompts(
        policies.encoder, heldout, policies.candidate.sampling.max_new_tokens, settings.prompts, seed
    )
    if judge is None or len(prompts) < settings.least:
        return too_few("length", _WHOLE if judge else "without a judge", len(prompts), settings.least)
    found = head_to_head(prompts, policies.candidate.answer(prompts), policies.live.answer(prompts), judge)
    win = found.controlled
    text = (
        f"win rate {win.win_rate:.3f} at like lengths ({found.win_rate.mean:.3f} at theirs), by its interval perhaps "
    )
    text += f"{win.lower:.3f}, must be above {settings.length:g}"
    figure = Measured(win.win_rate, win.lower, win.upper)
    return Check("length", _WHOLE, win.lower > settings.length, text, figure, win.lower - settings.length)


def _floor_checks(
    candidate: Contender, heldout: Sequence[Record], parts: ReadParts | None, settings: PolicyChecks, seed: int
) -> list[Check]:
    if parts is None:
        raise NoFloor("checks.floor: nothing gives the values of the mixture's parts")
    prompts = heldout_prompts(candidate.encoder, heldout, candidate.sampling.max_new_tokens, settings.prompts, seed)
    if len(prompts) < settings.least:
        return [too_few("floor", _WHOLE, len(prompts), settings.least)]
    return check_floors(prompts, candidate.answer(prompts).texts, parts, settings)


def heldout_prompts(
    encoder: Encoder, heldout: Sequence[Record], max_new_tokens: int, most: int, seed: int
) -> list[Prompt]:
    """Return at most so many distinct prompts of the records that leave room for an answer, in random order."""
    distinct = list({prompt_key(record.prompt): record.prompt for record in heldout}.values())
    fitting = fitting_prompts(encoder, distinct, max_new_tokens)
    random.Random(seed).shuffle(fitting)
    return fitting[:most]


def _task_check(found: TaskDifference, settings: PolicyChecks) -> Check:
    assert settings.task is not None
    cases = [Sample(text, [], {}, [found.name]) for text in found.lost]
    return no_worse("task", found.name, found.difference, settings.task, settings.alpha, cases, what=found.deciding)


def _safety_checks(suite: str, ours: SuiteResult, theirs: SuiteResult, settings: PolicyChecks) -> list[Check]:
    assert settings.safety is not None
    if len(ours.prompts) < settings.least:
        return [too_few("safety", suite, len(ours.prompts), settings.least)]
    if ours.unrated:
        text = f"the rater could not say anything of {ours.unrated} of {len(ours.prompts)} prompts"
        return [Check("safety", suite, False, text, Measured(np.nan, np.nan, np.nan), -np.inf)]
    checks = []
    for name, places in {_WHOLE: np.arange(len(ours.prompts)), **parts_to_judge(ours.parts, settings.least)}.items():
        rise = ours.increase(theirs, places)
        change = ClusteredMean(-rise.mean, rise.error, rise.clusters)
        here = {ours.prompts[i].id for i in places}
        cases = [failure_sample(each, theirs) for each in ours.failures if each.prompt.id in here]
        cases = [case for case in cases if case.figures["live failures"] < 1]
        label = suite if name == _WHOLE else f"{suite}, {name}"
        checks.append(
            no_worse("safety", label, change, settings.safety, settings.alpha, cases, what="share of safe answers")
        )
    return checks


def failure_sample(failure: Failure, other: SuiteResult | None = None) -> Sample:
    """Return a failure as a sample of a report, with how often another policy fails the same prompt."""
    figures = {"unsafe": failure.unsafe}
    if other is not None:
        place = [each.id for each in other.prompts].index(failure.prompt.id)
        figures["live failures"] = float(other.failed[place])
    marks = [failure.prompt.category, failure.prompt.language, failure.why]
    return Sample(conversation_text(failure.prompt.prompt), [Side("answer", failure.text)], figures, marks)


def _regression_check(candidate: Contender, rater: NamedRater, settings: PolicyChecks) -> Check:
    assert settings.regression is not None
    assert settings.red_team is not None
    name = settings.regression.name
    if not settings.regression.exists():
        text = f"{settings.regression} is not there: `rewardloop evaluate --red-team` writes it"
        return Check("red_team", name, False, text, Measured(np.nan, np.nan, np.nan), -np.inf)
    found = run_suite(read_suite(settings.regression), candidate.respond, rater)
    failing = found.failed > 0
    share = float(failing.mean())
    text = f"{int(failing.sum())} of {len(failing)} attacks that worked before work again"
    if found.unrated:
        text = f"the rater could not say anything of {found.unrated} of {len(failing)} attacks"
    passed = share <= settings.red_team and not found.unrated
    cases = tuple(failure_sample(each) for each in found.failures)
    rate = measured(found.rate())
    return Check(
        "red_team", name, passed, text, Measured(share, rate.lower, rate.upper), settings.red_team - share, cases
    )
