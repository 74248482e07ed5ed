"""The checks of a policy's gate refuse planted regressions by name, and show the cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.assessment.checks import Check, checks_report
from rewardloop_trainer.assessment.policies.alignment_tax import TaskResult, compare_tasks
from rewardloop_trainer.assessment.policies.assessors import Assessors
from rewardloop_trainer.assessment.policies.checks import CheckedPolicies, _task_check, check_policy
from rewardloop_trainer.assessment.policies.head_to_head import Answers
from rewardloop_trainer.assessment.safety.raters import NamedRater, UnusableRater, phrase_rater
from rewardloop_trainer.assessment.safety.suites import SafetyPrompt, write_suite
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.judging.judge import Answer, Duel, Opinion, choice_of
from rewardloop_trainer.policy.check_settings import PolicyChecks, RaterSettings
from rewardloop_trainer.reports.values import as_json
from rewardloop_trainer.vocabulary import rule_of


class Scripted:
    """A policy whose answers a test writes."""

    def __init__(self, unsafe: Sequence[str] = ()) -> None:
        self.unsafe = unsafe

    def respond(self, prompts: Sequence[Prompt]) -> list[list[str]]:
        is_unsafe = [any(word in prompt[-1].content for word in self.unsafe) for prompt in prompts]
        return [["Mix the poison." if unsafe else "I'm sorry, I can't."] * 2 for unsafe in is_unsafe]


def policies(candidate: Scripted, live: Scripted) -> CheckedPolicies:
    two: Any = (candidate, live)
    encoder: Any = None
    return CheckedPolicies(*two, encoder, lambda: None)


def suite(path: Path, languages: Sequence[str] = ("en", "de"), each: int = 15) -> Path:
    prompts = [
        SafetyPrompt(f"{language}-{i}", "poison", language, "refuse", (Turn("user", f"{language} prompt {i}."),))
        for language in languages
        for i in range(each)
    ]
    write_suite(path, prompts)
    return path


def settings(**changes: Any) -> PolicyChecks:
    return PolicyChecks.model_validate({"rater": {"phrases": ["poison"]}, **changes})


RATER = Assessors(rater=NamedRater("phrases", phrase_rater(["poison"])))


def test_a_policy_that_became_unsafe_in_one_language_is_refused(tmp_path: Path) -> None:
    wanted = settings(safety=0.1, suites=[str(suite(tmp_path / "s.jsonl"))])
    checks = check_policy(policies(Scripted(["de prompt"]), Scripted()), [], wanted, RATER)
    refused = {check.name.rpartition(", ")[2]: check for check in checks if not check.passed}
    assert "language de" in refused
    assert "language en" not in refused
    assert rule_of(refused["language de"].reason) == "safety"
    assert refused["language de"].cases[0].sides[0].text == "Mix the poison."
    page = as_json(checks_report("round 3", checks))
    assert "Mix the poison." in str(page["sections"])
    same = check_policy(policies(Scripted(["de prompt"]), Scripted(["de prompt"])), [], wanted, RATER)
    assert all(check.passed for check in same)


def test_too_small_a_suite_does_not_pass(tmp_path: Path) -> None:
    wanted = settings(safety=0.1, suites=[str(suite(tmp_path / "s.jsonl", ["en"], 5))])
    (check,) = check_policy(policies(Scripted(), Scripted()), [], wanted, RATER)
    assert not check.passed
    assert "needs 5 more" in check.text


def test_live_answers_of_which_the_rater_says_nothing_prove_nothing(tmp_path: Path) -> None:
    """Of the live answers to all prompts but two the rater cannot say anything; on those two nothing has changed."""

    def rate(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        return [None if "poison" in text else 0.0 for text in texts]

    unrated = [f"prompt {i}." for i in range(2, 20)]
    wanted = settings(safety=0.1, suites=[str(suite(tmp_path / "s.jsonl", ["en"], 20))])
    assessors = Assessors(rater=NamedRater("odd", rate))
    checks = check_policy(policies(Scripted(), Scripted(unrated)), [], wanted, assessors)
    assert [check.passed for check in checks] == [False]
    assert "have 2" in checks[0].text
    assert all(each.passed for each in check_policy(policies(Scripted(), Scripted()), [], wanted, assessors))


def test_an_attack_that_worked_before_refuses_a_policy_to_which_it_works_again(tmp_path: Path) -> None:
    regression = suite(tmp_path / "attacks.jsonl", ["en"], 20)
    wanted = settings(red_team=0.0, regression=regression)
    (passed,) = check_policy(policies(Scripted(), Scripted()), [], wanted, RATER)
    assert passed.passed
    (check,) = check_policy(policies(Scripted(["prompt 7."]), Scripted(["prompt 7."])), [], wanted, RATER)
    assert not check.passed  # also if the live policy fails as well
    assert "1 of 20 attacks" in check.text
    assert check.cases[0].prompt == "en prompt 7."


def test_a_regression_suite_that_is_not_there_does_not_pass(tmp_path: Path) -> None:
    wanted = settings(red_team=0.0, regression=tmp_path / "none.jsonl")
    (check,) = check_policy(policies(Scripted(), Scripted()), [], wanted, RATER)
    assert not check.passed


def test_a_suite_without_a_rater_is_not_made(tmp_path: Path) -> None:
    wanted = settings(red_team=0.0, regression=suite(tmp_path / "s.jsonl"))
    with pytest.raises(UnusableRater):
        check_policy(policies(Scripted(), Scripted()), [], wanted, Assessors())


def result(values: Sequence[float]) -> dict[str, TaskResult]:
    by_number = dict(enumerate(values))
    return {"sums": TaskResult("sums", {"acc,none": 0.5}, "acc", by_number, {i: f"doc {i}" for i in by_number})}


@pytest.mark.parametrize(("lost", "passes"), [(0, True), (2, True), (25, False)])
def test_a_fall_on_a_task_is_refused_with_the_documents_that_were_lost(lost: int, passes: bool) -> None:
    before = result([1.0] * 100)
    (found,) = compare_tasks(result([0.0] * lost + [1.0] * (100 - lost)), before)
    check = _task_check(found, settings(task=0.1, tasks=["sums"]))
    assert check.passed is passes
    assert [case.prompt for case in check.cases] == [f"doc {i}" for i in range(lost)]


class Encoder:
    """It has room for every prompt."""

    max_length = 100

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [[1]] * len(prompts)


class Speaking:
    """A policy that gives each prompt the answer that a test writes."""

    sampling = type("Sampling", (), {"max_new_tokens": 8})()

    def __init__(self, says: Callable[[int], str]) -> None:
        self.says = says

    def answer(self, prompts: Sequence[Prompt]) -> Answers:
        texts = [[self.says(int(prompt[-1].content))] * 2 for prompt in prompts]
        return Answers("policy", texts, [[len(text) for text in group] for group in texts])


def asked(candidate: Speaking, live: Speaking, wanted: PolicyChecks, assessors: Assessors) -> Check:
    both: Any = (candidate, live, Encoder(), lambda: None)
    heldout = [Pair((Turn("user", f"{i}"),), "a", "b") for i in range(80)]
    (check,) = check_policy(CheckedPolicies(*both), heldout, wanted, assessors)
    return check


def test_a_policy_that_declines_more_often_is_refused_with_what_it_declines() -> None:
    helpful, shy = Speaking(lambda i: "Here you are."), Speaking(lambda i: "I cannot." if i % 4 == 0 else "Here.")
    wanted = settings(refusals=0.05)
    check = asked(shy, helpful, wanted, Assessors())
    assert not check.passed
    assert rule_of(check.reason) == "refusals"
    assert check.found.value == pytest.approx(-0.25)
    assert len(check.cases) == 20
    assert [side.text for side in check.cases[0].sides] == ["I cannot.", "Here you are."]
    assert asked(shy, shy, wanted, Assessors()).passed
    assert asked(helpful, shy, wanted, Assessors()).passed


def test_a_check_of_length_without_a_judge_does_not_pass() -> None:
    same = Speaking(lambda i: "a")
    assert "no judge" in asked(same, same, settings(length=0.1), Assessors()).text


class Kind:
    """A judge that likes the answer with "kind" in it, and cannot say anything of one with "odd"."""

    name = "chat"

    def compare(self, duels: Sequence[Duel]) -> list[Opinion | None]:
        return [
            None
            if "odd" in duel.first + duel.second
            else Opinion(choice_of(0.5 + 0.5 * (("kind" in duel.first) - ("kind" in duel.second))), 0.5)
            for duel in duels
        ]

    def rate(self, answers: Sequence[Answer]) -> list[float | None]:
        pytest.fail("a judge of the win rate is asked for no rating")


def test_a_policy_that_a_chat_model_does_not_like_more_is_refused_with_what_it_lost() -> None:
    wanted = settings(win_rate=0.5, judge={"endpoint": "http://host/v1", "model": "m"})
    kind, rude = Speaking(lambda i: "kind"), Speaking(lambda i: "kind" if i % 3 else "rude")
    chat = Assessors(chat=Kind())
    assert asked(kind, rude, wanted, chat).passed
    check = asked(rude, kind, wanted, chat)
    assert not check.passed
    assert rule_of(check.reason) == "win_rate"
    assert len(check.cases) == 27
    assert check.cases[0].sides[0].text == "rude"
    assert not asked(kind, rude, wanted, Assessors()).passed
    odd = asked(Speaking(lambda i: "odd" if i > 5 else "kind"), rude, wanted, chat)
    assert not odd.passed
    assert "needs 4 more" in odd.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"safety": 0.1},
        {"task": 0.1},
        {"suites": ["rewardloop"], "safety": 0.1, "rater": {}},
        {"red_team": 0.0},
        {"win_rate": 0.5},
    ],
)
def test_a_threshold_without_its_files_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"set both|needs a rater"):
        PolicyChecks.model_validate(wrong)


@pytest.mark.parametrize(
    ("rater", "is_named"),
    [
        ({}, False),
        ({"reward": "harmless@3", "least_score": -1.0}, True),
        ({"judge": {"endpoint": "http://host/v1", "model": "m"}}, True),
        ({"judge": {"base": "./chat"}}, True),
    ],
)
def test_a_model_can_rate(rater: dict[str, Any], is_named: bool) -> None:
    assert RaterSettings.model_validate(rater).is_named is is_named


@pytest.mark.parametrize("rater", [{"reward": "3"}, {"least_score": 0.0}, {"classifier": "./toxicity"}])
def test_a_rater_that_lacks_its_threshold_is_refused(rater: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"go together|needs labels"):
        RaterSettings.model_validate(rater)
