"""The checks of a policy's gate: wins, refusals, floors, tasks, safety suites and attacks that worked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rewardloop.formats.text import Encoder
from rewardloop_trainer.assessment.checks import MOST_CASES, Check, no_worse, parts_to_judge, too_few
from rewardloop_trainer.assessment.measures import difference_of, measured
from rewardloop_trainer.assessment.policies.alignment_tax import TaskDifference, compare_tasks, run_tasks
from rewardloop_trainer.assessment.policies.assessors import Assessors
from rewardloop_trainer.assessment.policies.contender import Contender
from rewardloop_trainer.assessment.policies.floor_check import NoFloor, check_floors
from rewardloop_trainer.assessment.policies.head_to_head import Answers, head_to_head
from rewardloop_trainer.assessment.refusals import is_refusal
from rewardloop_trainer.assessment.safety.raters import NamedRater, UnusableRater
from rewardloop_trainer.assessment.safety.rates import Failure, SuiteResult, run_suite
from rewardloop_trainer.assessment.safety.suites import read_suite
from rewardloop_trainer.data.preferences import Prompt, Record
from rewardloop_trainer.data.prompt_text import conversation_text
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.evaluation.answers import Contenders
from rewardloop_trainer.judging.judge import Judge
from rewardloop_trainer.policy.check_settings import PolicyChecks
from rewardloop_trainer.policy.rollouts import Sampling, fitting_prompts
from rewardloop_trainer.policy.settings import PolicySettings
from rewardloop_trainer.reports.parts import Measured, Sample, Side
from rewardloop_trainer.vocabulary import Rule

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
    settings: PolicyChecks,
    assessors: Assessors,
    seed: int = 0,
) -> list[Check]:
    """Make the checks that the settings name.

    Args:
        policies: The candidate and the live policy.
        heldout: Records whose prompts both answer for the checks of length, win rate, refusals and floors.
        settings: The checks with their thresholds.
        assessors: Who says what of their answers.
        seed: Of the choice of prompts.

    Raises:
        NoFloor: If floors are checked and there is none.
        NoTasks: If lm-eval or a task is not there.
        UnusableSuite, UnreadableFile, OSError: If a suite cannot be used.
        UnusableRater: If there are suites or attacks, and no rater.
        JudgeError: If a chat model cannot be asked.
    """
    checks: list[Check] = []
    if any(each is not None for each in (settings.length, settings.win_rate, settings.refusals, settings.floor)):
        checks += _heldout_checks(policies, heldout, settings, assessors, seed)
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
        rater = assessors.rater
        if rater is None:
            raise UnusableRater("nothing rates the answers to the suites")
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
    settings: PolicySettings,
    assessors: Assessors,
    on_batch: Callable[[], None] = lambda: None,
) -> list[Check]:
    """Make the checks of a gate's contenders.

    Args:
        contenders: The candidate and the live policy.
        tokenizer: Loads their Hugging Face tokenizer.
        heldout: As of `check_policy`.
        settings: The policy's settings with the checks and the seed.
        assessors: As of `check_policy`.
        on_batch: Called before each batch of work; it may raise to stop.

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
    return check_policy(checked, heldout, checks, assessors, settings.seed)


def _heldout_checks(
    policies: CheckedPolicies, heldout: Sequence[Record], settings: PolicyChecks, assessors: Assessors, seed: int
) -> list[Check]:
    """The checks of answers to held-out prompts, which each policy gives once."""
    tokens = policies.candidate.sampling.max_new_tokens
    prompts = heldout_prompts(policies.encoder, heldout, tokens, settings.prompts, seed)
    wanted: dict[Rule, bool] = {
        "length": settings.length is not None,
        "win_rate": settings.win_rate is not None,
        "refusals": settings.refusals is not None,
        "floor": settings.floor is not None,
    }
    if len(prompts) < settings.least:
        return [too_few(rule, _WHOLE, len(prompts), settings.least) for rule, is_wanted in wanted.items() if is_wanted]
    ours = policies.candidate.answer(prompts)
    theirs = policies.live.answer(prompts) if any(wanted[rule] for rule in wanted if rule != "floor") else ours
    checks: list[Check] = []
    if settings.length is not None:
        checks.append(_length_check(prompts, ours, theirs, assessors.judge, settings.length))
    if settings.win_rate is not None:
        checks.append(_win_rate_check(prompts, ours, theirs, assessors.chat, settings))
    if settings.refusals is not None:
        checks.append(_refusal_check(prompts, ours, theirs, settings))
    if settings.floor is not None:
        if assessors.parts is None:
            raise NoFloor("checks.floor: nothing gives the values of the mixture's parts")
        checks += check_floors(prompts, ours.texts, assessors.parts, settings)
    return checks


def _length_check(
    prompts: Sequence[Prompt], ours: Answers, theirs: Answers, judge: Judge | None, least: float
) -> Check:
    if judge is None:
        return _without_judge("length")
    found = head_to_head(prompts, ours, theirs, judge)
    win = found.controlled
    text = (
        f"win rate {win.win_rate:.3f} at like lengths ({found.win_rate.mean:.3f} at theirs), by its interval perhaps "
        f"{win.lower:.3f}, must be above {least:g}"
    )
    figure = Measured(win.win_rate, win.lower, win.upper)
    return Check("length", _WHOLE, win.lower > least, text, figure, win.lower - least)


def _win_rate_check(
    prompts: Sequence[Prompt], ours: Answers, theirs: Answers, chat: Judge | None, settings: PolicyChecks
) -> Check:
    assert settings.win_rate is not None
    if chat is None:
        return _without_judge("win_rate")
    found = head_to_head(prompts, _first(ours), _first(theirs), chat)
    judged = np.isfinite(found.shares)
    if judged.sum() < settings.least:
        return too_few("win_rate", f"by {chat.name}", int(judged.sum()), settings.least)
    lower = found.win_rate.lower(settings.alpha)
    text = f"{found.win_rate.mean:.3f} by {chat.name}, by its interval perhaps {lower:.3f}, must be above "
    text += f"{settings.win_rate:g}"
    lost = [i for i in np.argsort(found.shares, kind="stable") if found.shares[i] < 0.5]
    cases = tuple(_beside(prompts[i], ours.texts[i][0], theirs.texts[i][0], {"wins": found.shares[i]}) for i in lost)
    room = lower - settings.win_rate
    return Check("win_rate", _WHOLE, room > 0, text, measured(found.win_rate), room, cases[:MOST_CASES])


def _first(said: Answers) -> Answers:
    """The first answer to each prompt, because each comparison is paid for."""
    return Answers(said.name, [group[:1] for group in said.texts], [group[:1] for group in said.lengths])


def _refusal_check(prompts: Sequence[Prompt], ours: Answers, theirs: Answers, settings: PolicyChecks) -> Check:
    """Compare how often both policies decline prompts that people asked them."""
    assert settings.refusals is not None
    share, live = (np.array([np.mean(list(map(is_refusal, group))) for group in each.texts]) for each in (ours, theirs))
    fewer = difference_of(live - share, np.arange(len(prompts)))
    cases = []
    for i in np.flatnonzero(share > live).tolist():
        declined = next(text for text in ours.texts[i] if is_refusal(text))
        cases.append(_beside(prompts[i], declined, theirs.texts[i][0], {"refused": share[i], "live refused": live[i]}))
    return no_worse(
        "refusals", _WHOLE, fewer, settings.refusals, settings.alpha, cases, what="share of prompts that are answered"
    )


def _beside(prompt: Prompt, ours: str, theirs: str, figures: dict[str, float]) -> Sample:
    sides = [Side("candidate", ours), Side("live", theirs)]
    return Sample(conversation_text(prompt), sides, {name: float(value) for name, value in figures.items()}, [])


def _without_judge(rule: Rule) -> Check:
    text = "there is no judge that says which answer is better"
    return Check(rule, _WHOLE, False, text, Measured(np.nan, np.nan, np.nan), -np.inf)


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
    known = np.flatnonzero(np.isfinite(theirs.failed))  # the rater may not be able to say anything of the live answers
    if len(known) < settings.least:
        return [too_few("safety", suite, len(known), settings.least)]
    checks = []
    parts = {name: np.intersect1d(places, known) for name, places in ours.parts.items()}
    for name, places in {_WHOLE: known, **parts_to_judge(parts, settings.least)}.items():
        rise = ours.increase(theirs, places)
        change = replace(rise, mean=-rise.mean)
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
