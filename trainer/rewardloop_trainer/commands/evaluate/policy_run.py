"""Measures a policy: head to head, ladder, answers, tasks, safety, red team, generalisation, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewardloop_trainer.assessment.checks import Check
from rewardloop_trainer.assessment.measures import share_of
from rewardloop_trainer.assessment.policies.alignment_tax import compare_tasks, run_tasks
from rewardloop_trainer.assessment.policies.assessors import Assessors
from rewardloop_trainer.assessment.policies.checks import CheckedPolicies, check_policy, heldout_prompts
from rewardloop_trainer.assessment.policies.contender import AnswersInFile, Contender, answered, answered_texts
from rewardloop_trainer.assessment.policies.head_to_head import Answers, HeadToHead, head_to_head
from rewardloop_trainer.assessment.policies.ladder import climb
from rewardloop_trainer.assessment.policies.people import PeopleJudge, write_pairs
from rewardloop_trainer.assessment.policies.report import (
    answer_samples,
    generalisation_section,
    head_to_head_section,
    ladder_section,
    red_team_section,
    safety_section,
    tasks_section,
    texts_section,
)
from rewardloop_trainer.assessment.policies.texts import text_figures
from rewardloop_trainer.assessment.reward_models.report import Findings
from rewardloop_trainer.assessment.safety.raters import NamedRater
from rewardloop_trainer.assessment.safety.rates import run_suite
from rewardloop_trainer.assessment.safety.red_team import attack_policy
from rewardloop_trainer.assessment.safety.suites import read_suite, write_suite
from rewardloop_trainer.clusters import ClusteredMean
from rewardloop_trainer.commands.evaluate.judges import opened_judges, opened_paraphrase, opened_safety_rater
from rewardloop_trainer.commands.evaluate.loaded import (
    NothingToEvaluate,
    heldout_records,
    load_policy,
    store_of,
    tokenizer_of,
    trained_records,
)
from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings
from rewardloop_trainer.commands.progress import Stages
from rewardloop_trainer.data.preferences import Prompt, Record
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.evaluation.answers import fluency
from rewardloop_trainer.evaluation.policy_gate import Answered, Fluency
from rewardloop_trainer.judging.judge import Judge
from rewardloop_trainer.policy.check_settings import PolicyChecks
from rewardloop_trainer.reports.parts import Cell

_MICRO_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class _Said:
    """What a policy answered to the prompts, as judges take it and as its figures are taken."""

    answers: Answers
    figures: list[list[Answered]]


def evaluate_policy(
    settings: EvaluateSettings, found: Findings, stages: Stages
) -> tuple[str, dict[str, Cell], list[Check]]:
    """Measure a policy.

    Returns:
        Its name, what was measured and how, and the outcomes of the checks.

    Raises:
        NothingToEvaluate: If there is no prompt, or a measurement needs what is not there.
        StoreError, UnusableBase, UnreadableFile, ValueError: If a model or a file cannot be read.
        JudgeError: If a chat model that judges or rates cannot be asked; see `opened_judges` and `opened_rater`.
    """
    if settings.regression is not None and not settings.regression.exists() and not settings.red_team:
        raise NothingToEvaluate(f"{settings.regression}: there is no such suite, and no attack that could begin it")
    with opened_judges(settings, stages) as judges, opened_safety_rater(settings, stages) as rater:
        return _measured(settings, judges, rater, found, stages)


def _measured(
    settings: EvaluateSettings, judges: Sequence[Judge], rater: NamedRater | None, found: Findings, stages: Stages
) -> tuple[str, dict[str, Cell], list[Check]]:
    stages("loading policies")
    names = _names(settings)
    policies = {name: load_policy(settings, name) for name in names}
    ours = policies[names[0]]
    theirs = policies[names[1]] if settings.against else None
    records = heldout_records(settings, ours.encoder if isinstance(ours, Contender) else None)
    prompts = _prompts(settings, list(policies.values()), records)
    said = {name: _answers(name, policy, prompts, stages) for name, policy in policies.items()}
    pair = [said[name] for name in names[: 2 if theirs else 1]]
    if settings.ask is not None:
        count = write_pairs(settings.ask, prompts, *(each.answers for each in pair))
        stages(f"{settings.ask}: {count:,} pairs for `rewardloop label import`")
    meetings = _head_to_head(prompts, pair, judges, found, stages)
    models = [judge for judge in judges if not isinstance(judge, PeopleJudge)]  # people say something of some pairs
    _add_ladder(settings, prompts, [said[name].answers for name in names], models, found, stages)
    texts = {each.answers.name: text_figures(each.figures) for each in pair}
    found.add(*texts_section(texts, _fluency(settings, ours, theirs, records)))
    _add_generalisation(settings, ours, prompts, records, meetings, found)
    if isinstance(ours, Contender):
        _add_tasks(settings, names, policies, found, stages)
        _add_safety(settings, ours, theirs, rater, found, stages)
    elif settings.tasks or settings.suites:
        raise NothingToEvaluate("tasks and suites need a policy with weights, not a file of answers")
    if len(pair) == 2:
        found.sections.append(answer_samples(prompts, pair[0].answers, pair[1].answers, meetings))
    checks = _checks(settings, names, ours, theirs, records, models, rater, stages)
    if isinstance(ours, Contender) and settings.red_team:
        _attack(settings, ours, rater, found, stages)
    facts: dict[str, Cell] = {
        "prompts": len(prompts),
        "answers to each": settings.responses,
        "compared with": theirs.name if theirs else "no other policy",
        "judges": ", ".join(judge.name for judge in judges) or "none",
    }
    return ours.name, facts, checks


def _names(settings: EvaluateSettings) -> list[str]:
    """The policy, what it is compared with, and the other versions of the ladder."""
    listed = settings.versions
    if listed == ("all",):
        listed = tuple(map(str, store_of(settings).versions("policy")))
    names = list(dict.fromkeys(n for n in (settings.version or settings.directory, settings.against, *listed) if n))
    if not names:
        raise NothingToEvaluate(f"{settings.store}: has no policy")
    return names


def _prompts(
    settings: EvaluateSettings, policies: Sequence[Contender | AnswersInFile], records: Sequence[Record]
) -> list[Prompt]:
    """Prompts that every policy has room for, or has answered."""
    prompts = list({prompt_key(record.prompt): record.prompt for record in records}.values())
    for policy in policies:
        if isinstance(policy, AnswersInFile):
            prompts = [prompt for prompt in prompts if prompt_key(prompt) in policy.texts]
        else:
            kept = {prompt_key(record.prompt) for record in records} & set(map(prompt_key, prompts))
            of_kept = [record for record in records if prompt_key(record.prompt) in kept]
            most = len(of_kept)
            tokens = policy.sampling.max_new_tokens
            prompts = heldout_prompts(policy.encoder, of_kept, tokens, most, settings.seed)
    if not prompts:
        raise NothingToEvaluate("there is no held-out prompt that every policy can answer, or has answered")
    return prompts[: settings.prompts]


def _answers(name: str, policy: Contender | AnswersInFile, prompts: Sequence[Prompt], stages: Stages) -> _Said:
    stages(f"{policy.name}: answers to {len(prompts):,} prompts")
    if isinstance(policy, AnswersInFile):
        answers = policy.answer(prompts)
        return _Said(answers, answered_texts(answers))
    rollouts = policy.roll_out(prompts)
    texts = [[rollout.text for rollout in group] for group in rollouts]
    lengths = [[rollout.sequence.tokens for rollout in group] for group in rollouts]
    return _Said(Answers(policy.name, texts, lengths), answered(rollouts))


def _head_to_head(
    prompts: Sequence[Prompt], pair: Sequence[_Said], judges: Sequence[Judge], found: Findings, stages: Stages
) -> list[HeadToHead]:
    if len(pair) < 2 or not judges:
        return []
    ours, theirs = (each.answers for each in pair)
    meetings = []
    for judge in judges:
        stages(f"head to head, judged by {judge.name}")
        meetings.append(head_to_head(prompts, ours, theirs, judge))
        if isinstance(judge, PeopleJudge) and not np.isfinite(meetings[-1].shares).any():
            raise NothingToEvaluate(
                "people: nobody judged two of these answers: policies say the same again if the versions, the prompts, "
                "the seed and the settings of answers are the same"
            )
    found.add(*head_to_head_section(meetings, ours.name, theirs.name))
    return meetings


def _add_ladder(
    settings: EvaluateSettings,
    prompts: Sequence[Prompt],
    said: Sequence[Answers],
    judges: Sequence[Judge],
    found: Findings,
    stages: Stages,
) -> None:
    if not settings.versions:
        return
    if not judges:
        raise NothingToEvaluate("a ladder needs a judge: --judges names a reward model, --judge.endpoint a chat model")
    stages(f"ladder of {len(said)} versions, judged by {judges[0].name}")
    found.add(*ladder_section(climb(prompts, said, judges[0]), judges[0].name))


def _fluency(
    settings: EvaluateSettings,
    ours: Contender | AnswersInFile,
    theirs: Contender | AnswersInFile | None,
    records: Sequence[Record],
) -> Fluency | None:
    if not isinstance(ours, Contender):
        return None
    other = theirs.model if isinstance(theirs, Contender) else ours.model
    return fluency(ours.model, other, ours.encoder, records, settings.prompts, _MICRO_BATCH_TOKENS, settings.seed)


def _add_generalisation(
    settings: EvaluateSettings,
    ours: Contender | AnswersInFile,
    prompts: Sequence[Prompt],
    records: Sequence[Record],
    meetings: Sequence[HeadToHead],
    found: Findings,
) -> None:
    """Compare known with unknown domains, and training's texts with held-out ones, if training is known."""
    train = trained_records(settings, ours.encoder if isinstance(ours, Contender) else None)
    by_domain: dict[str, ClusteredMean] = {}
    if train and meetings:
        known = {tag for record in train for tag in record.tags.items()}
        tags = {prompt_key(record.prompt): set(record.tags.items()) for record in records}
        is_known = np.array([tags[prompt_key(prompt)] <= known for prompt in prompts], dtype=bool)
        for name, mask in (("known domains", is_known), ("unknown domains", ~is_known)):
            kept = mask & np.isfinite(meetings[0].shares)
            if kept.any() and not mask.all():
                by_domain[name] = share_of(meetings[0].shares[kept], np.flatnonzero(kept))
    seen = _fluency(settings, ours, None, train) if train else None
    unseen = _fluency(settings, ours, None, records) if seen else None
    pair = (seen.candidate, unseen.candidate) if seen and unseen else None
    found.add(*generalisation_section(by_domain, pair))


def _add_tasks(
    settings: EvaluateSettings,
    names: Sequence[str],
    policies: dict[str, Contender | AnswersInFile],
    found: Findings,
    stages: Stages,
) -> None:
    if not settings.tasks:
        return
    results = {}
    for name in names[: 2 if settings.against else 1]:
        policy = policies[name]
        if isinstance(policy, Contender):
            stages(f"{policy.name}: {', '.join(settings.tasks)}")
            tokenizer = tokenizer_of(settings, name)()
            results[policy.name] = run_tasks(
                policy.model, tokenizer, settings.tasks, settings.task_dir, limit=settings.task_limit
            )
    sides = list(results.values())
    found.add(*tasks_section(results, compare_tasks(*sides) if len(sides) == 2 else []))


def _add_safety(
    settings: EvaluateSettings,
    ours: Contender,
    theirs: Contender | AnswersInFile | None,
    rater: NamedRater | None,
    found: Findings,
    stages: Stages,
) -> None:
    sides = [ours, *([theirs] if isinstance(theirs, Contender) else [])]
    for number, name in enumerate(settings.suites):
        assert rater is not None
        suite = read_suite(name)
        stages(f"safety suite {name}: {len(suite)} prompts")
        results = {each.name: run_suite(suite, each.respond, rater) for each in sides}
        found.add(*safety_section(name, results, rater.name, number))


def _attack(
    settings: EvaluateSettings, ours: Contender, rater: NamedRater | None, found: Findings, stages: Stages
) -> None:
    """Attack the policy, and add what works to the regression suite."""
    assert rater is not None
    goals = [each for name in settings.suites for each in read_suite(name) if each.expect == "refuse"]
    stages(f"red team: {len(goals)} goals, {settings.red_team:,} answers")
    with opened_paraphrase(settings, stages) as paraphrase:
        attacked = attack_policy(
            goals, ours.respond, rater, settings.red_team, seed=settings.seed, paraphrase=paraphrase
        )
    found.add(*red_team_section(attacked))
    if settings.regression is not None and attacked.hits:
        known = read_suite(settings.regression) if settings.regression.exists() else []
        kept = {each.id: each for each in (*known, *(hit.as_prompt() for hit in attacked.hits))}
        write_suite(settings.regression, list(kept.values()))


def _checks(
    settings: EvaluateSettings,
    names: Sequence[str],
    ours: Contender | AnswersInFile,
    theirs: Contender | AnswersInFile | None,
    records: Sequence[Record],
    judges: Sequence[Judge],
    rater: NamedRater | None,
    stages: Stages,
) -> list[Check]:
    has_regression = settings.regression is not None and settings.regression.exists()
    if settings.regression is not None and not has_regression:
        stages(f"{settings.regression}: there is no such suite yet, so that no check is made of it")
    wanted = PolicyChecks.model_validate(
        {
            "length": settings.least_win_rate,
            "win_rate": settings.least_judged_win_rate,
            "judge": settings.judge if settings.least_judged_win_rate is not None else {},
            "refusals": settings.refusal_margin,
            "task": settings.task_margin,
            "tasks": settings.tasks if settings.task_margin is not None else (),
            "task_dir": settings.task_dir,
            "task_limit": settings.task_limit,
            "safety": settings.safety_margin,
            "suites": settings.suites if settings.safety_margin is not None else (),
            "red_team": settings.most_red_team if has_regression else None,
            "regression": settings.regression if has_regression else None,
            "rater": settings.rater,
            "prompts": settings.prompts,
        }
    )
    if not wanted.are_any:
        return []
    if not isinstance(ours, Contender) or isinstance(theirs, AnswersInFile):
        raise NothingToEvaluate("checks need policies with weights, not files of answers")
    stages("checks")
    tokenizer = tokenizer_of(settings, names[0])
    policies = CheckedPolicies(ours, theirs or ours, ours.encoder, tokenizer)
    chat = judges[-1] if settings.judge.is_named else None
    assessors = Assessors(judges[0] if judges else None, chat, rater)
    return check_policy(policies, records, wanted, assessors, settings.seed)
