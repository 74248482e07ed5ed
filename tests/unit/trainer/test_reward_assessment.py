"""Agreement with people, benchmarks in their own formats, calibration and best-of-n, against numbers by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.assessment.reward_models.agreement import (
    Choices,
    human_ceiling,
    length_margins,
    slices_of,
    word_margins,
)
from rewardloop_trainer.assessment.reward_models.benchmarks import (
    UnusableBenchmark,
    read_benchmark,
    score_benchmark,
)
from rewardloop_trainer.assessment.reward_models.checks import RatedVersion, Seen, check_reward
from rewardloop_trainer.assessment.reward_models.over_optimisation import over_optimisation
from rewardloop_trainer.data.logistic import sigmoid
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.evaluation.evidence import Readings, evidence_of
from rewardloop_trainer.evaluation.likelihood import calibration_error, reliability
from rewardloop_trainer.reward.settings import RewardChecks
from rewardloop_trainer.vocabulary import rule_of


def prompt(text: str) -> Prompt:
    return (Turn("user", text),)


def score_by_length(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float | None]]:
    return [[float(len(text)) if text else None for text in group] for group in texts]


def score_against_length(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float | None]]:
    return [[-float(len(text)) for text in group] for group in texts]


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_people_are_a_ceiling_and_unknown_people_are_one_person() -> None:
    said = [("ann", "a"), ("bob", "a"), ("cid", "b")]
    pairs = [Pair(prompt("q"), *(("a", "b") if won == "a" else ("b", "a")), annotator=who) for who, won in said]
    pairs.append(Pair(prompt("other"), "x", "y", annotator="ann"))
    ceiling = human_ceiling(Choices.of(evidence_of(pairs)))
    assert ceiling is not None
    assert ceiling.judgements == 3
    assert ceiling.pairwise.mean == pytest.approx(1 / 3)  # ann 1/2, bob 1/2, cid 0
    assert ceiling.by_majority.mean == pytest.approx(1 / 3)  # ann a half, bob a half, cid 0
    unknown = Choices.of(evidence_of([Pair(prompt(str(i)), "a", "b") for i in range(4)]))
    assert not unknown.has_people
    assert human_ceiling(unknown) is None


def test_slices_are_by_tag_source_and_length() -> None:
    pairs = [
        Pair(prompt(str(i)), "long answer", "x", tags={"language": "de" if i % 2 else "en", "id": str(i)})
        for i in range(40)
    ]
    found = slices_of(Choices.of(evidence_of(pairs)))
    assert set(found) == {"language=de", "language=en", "source=human", "chosen far longer"}
    assert found["language=de"].sum() == 20


def test_words_of_other_prompts_predict_choices() -> None:
    good, bad = ("kind warm", "cold rude")
    pairs = [Pair(prompt(f"q{i}"), f"{good} {i}", f"{bad} {i}") for i in range(60)]
    choices = Choices.of(evidence_of(pairs))
    assert (word_margins(choices) > 0).all()
    assert choices.accuracy(word_margins(choices)).mean == 1.0
    assert (length_margins(choices) == 0).all()


def test_calibration_error_is_that_of_guo_et_al() -> None:
    """The formula of scikit-learn's and netcal's users: sum over bins of share * |accuracy - confidence|."""
    chance = np.random.default_rng(0)
    margins, weights = chance.normal(0.5, 1.5, 2_000), np.ones(2_000)
    confidence, right = sigmoid(np.abs(margins)), margins > 0
    expected = 0.0
    for low, high in zip(np.linspace(0.5, 1, 11)[:-1], np.linspace(0.5, 1, 11)[1:], strict=True):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(margins, weights) == pytest.approx(expected, abs=1e-12)
    bins = reliability(margins, weights)
    assert sum(each.share for each in bins) == pytest.approx(1.0)
    assert sum(each.choices for each in bins) == 2_000


def test_calibration_curve_is_that_of_scikit_learn() -> None:
    calibration = pytest.importorskip("sklearn.calibration", reason="scikit-learn is not installed")
    margins = np.random.default_rng(1).normal(0.5, 1.5, 3_000)
    right = (margins > 0).astype(int)
    # scikit-learn's bins are over 0 to 1, ours over 1/2 to 1: 20 of its bins are 10 of ours.
    accuracy, confidence = calibration.calibration_curve(right, sigmoid(np.abs(margins)), n_bins=20)
    bins = reliability(margins, np.ones(3_000))
    assert [each.accuracy for each in bins] == pytest.approx(list(accuracy))
    assert [each.confidence for each in bins] == pytest.approx(list(confidence))


def test_benchmarks_are_read_in_their_own_formats(tmp_path: Path) -> None:
    reward_bench = {"prompt": "q", "chosen": "longer", "rejected": "x", "subset": "chat", "id": 1}
    second = {"prompt": "q", "chosen": ["four"], "rejected": ["a", "bb", "fifth"], "subset": "math", "num_correct": 1}
    rm_bench = {"id": "1", "prompt": "q", "chosen": ["a", "bbb", "ccccc"], "rejected": ["xx", "yyyy", "z" * 6]}
    judge_bench = {"pair_id": "1", "source": "law", "question": "q", "response_A": "aa", "response_B": "b"}
    said = [{"role": "assistant", "content": "yes"}]
    rows = [
        reward_bench,
        second,
        {**rm_bench, "domain": "code"},
        {**judge_bench, "label": "B>A"},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": said, "rejected": "n"},
    ]
    benchmark = read_benchmark(write_rows(tmp_path / "all.jsonl", rows))
    found = score_benchmark(benchmark, score_by_length)
    assert [item.subset for item in benchmark.items] == ["chat", "math", "code", "law", "all"]
    # The plain right answer (1) is shorter than all wrong ones (2, 4, 6), the middle one (3) longer than one of them,
    # and the richest (5) longer than two: three of nine.
    assert list(found.right) == pytest.approx([1.0, 0.0, 3 / 9, 0.0, 1.0])
    assert {name: list(values) for name, values in found.styles.items()} == {
        "easy": [1.0],  # 3 > 2, 5 > 2, 5 > 4
        "normal": [0.0],  # 1 < 2, 3 < 4, 5 < 6
        "hard": [0.0],
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q"}, "no known form"),
        ({"question": "q", "response_A": "a", "response_B": "b", "label": "A"}, "label"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "empty"),
        ([1], "not an object"),
    ],
)
def test_a_row_of_another_form_is_refused_by_its_line(tmp_path: Path, row: object, message: str) -> None:
    path = write_rows(tmp_path / "b.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}, row])
    with pytest.raises(UnusableBenchmark, match=rf"b\.jsonl:2: .*{message}"):
        read_benchmark(path)


def test_best_of_n_is_the_mean_over_all_choices_of_n() -> None:
    chance = np.random.default_rng(0)
    rewards, judged = [chance.normal(size=5) for _ in range(3)], [chance.normal(size=5) for _ in range(3)]
    found = over_optimisation(rewards, judged)
    assert found is not None
    assert [point.n for point in found.curve] == [1, 2, 4, 5]
    deviation = np.sqrt(sum(((j - j.mean()) ** 2).sum() for j in judged) / 12)
    for point in found.curve:
        values = [
            np.mean([j[max(chosen, key=lambda i: r[i])] for chosen in combinations(range(5), point.n)]) - j.mean()
            for r, j in zip(rewards, judged, strict=True)
        ]
        assert point.judge.mean == pytest.approx(np.mean(values) / deviation)
    assert found.curve[1].kl == pytest.approx(np.log(2) - 1 / 2)


def test_a_judge_whose_score_falls_at_the_end_shows_over_optimisation() -> None:
    chance = np.random.default_rng(0)
    rewards = [chance.normal(size=16) for _ in range(60)]
    hacked = over_optimisation(rewards, [-((r - 0.5) ** 2) + 0.1 * chance.normal(size=16) for r in rewards])
    honest = over_optimisation(rewards, [r + chance.normal(size=16) for r in rewards])
    assert hacked is not None
    assert honest is not None
    assert hacked.is_shown
    assert hacked.peak < 16
    assert not honest.is_shown


def test_a_regression_of_one_slice_and_of_one_subset_is_refused_with_its_cases(tmp_path: Path) -> None:
    """The candidate is as good as the live version but in one language, and in one subset of a benchmark."""
    pairs = [Pair(prompt(f"q{i}"), "a b", "c d", tags={"language": "de" if i % 4 == 0 else "en"}) for i in range(200)]
    evidence = evidence_of(pairs)
    live = np.ones(200)
    worse = np.array([-1.0 if i % 4 == 0 and i % 8 == 0 else 1.0 for i in range(200)])
    rows = [
        {"prompt": f"p{i}", "chosen": "long enough" if i % 2 else "ok", "rejected": "no" if i % 2 else "much longer",
         "subset": "plain" if i % 2 else "short"}
        for i in range(80)
    ]  # fmt: skip

    def score_right(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float | None]]:
        return [[float(text in ("long enough", "ok")) for text in group] for group in texts]

    files = [write_rows(tmp_path / "bench.jsonl", rows)]
    settings = RewardChecks.model_validate({"slice": 0.05, "benchmark": 0.05, "benchmarks": files, "calibration": 0.5})
    none = np.zeros(0)
    checks = check_reward(
        evidence,
        RatedVersion(Readings(worse, none), score_by_length),
        RatedVersion(Readings(live, none), score_right),
        settings,
    )
    refused = {check.name: check for check in checks if not check.passed}
    assert {"language=de", "bench, short"} <= set(refused)
    assert not {"language=en", "bench, plain", "all"} & set(refused)
    assert len(refused["language=de"].cases) == 25
    assert rule_of(refused["bench, short"].reason) == "benchmark"
    assert refused["bench, short"].cases[0].marks == ["short"]
    same = check_reward(evidence, *[RatedVersion(Readings(live, none), score_right)] * 2, settings)
    assert all(check.passed for check in same)


def test_a_model_that_knows_its_training_signals_by_heart_is_refused_with_what_it_gets_wrong() -> None:
    pairs = [Pair(prompt(f"q{i}"), "a b", "c d") for i in range(200)]
    evidence, none = evidence_of(pairs), np.zeros(0)
    seen = Choices.of(evidence_of([Pair(prompt(f"s{i}"), "a b", "c d") for i in range(100)]))
    margins = np.array([-2.0 if i == 7 else -1.0 if i % 4 == 0 else 1.0 for i in range(200)])
    candidate = RatedVersion(Readings(margins, none), score_by_length)
    settings = RewardChecks.model_validate({"overfit": 0.1})
    by_heart, as_good = Seen(seen, np.ones(100)), Seen(seen, np.array([-1.0 if i % 4 else 1.0 for i in range(100)]))
    (check,) = check_reward(evidence, candidate, None, settings, by_heart)
    assert not check.passed
    assert rule_of(check.reason) == "overfit"
    assert check.found.value == pytest.approx(51 / 200)
    assert check.cases[0].prompt.endswith("q7")
    assert len(check.cases) == 50
    (check,) = check_reward(evidence, candidate, None, settings, as_good)
    assert check.passed
    for unknown in (None, Seen(Choices.of(evidence_of([pairs[0]])), np.ones(1))):
        (check,) = check_reward(evidence, candidate, None, settings, unknown)
        assert not check.passed


def test_an_over_optimised_model_is_refused_with_the_answers_that_it_likes_and_the_judge_does_not(
    tmp_path: Path,
) -> None:
    """Each answer is a number, which the candidate likes; the judge does up to 4, and not beyond."""
    rows = [{"prompt": f"q{i}", "responses": [str(n) for n in range(1 + i % 2, 9 + i % 2)]} for i in range(40)]
    answers = write_rows(tmp_path / "answers.jsonl", rows)

    def scorer(of: Callable[[float], float]) -> Scorer:
        return lambda prompts, texts: [[of(float(text)) for text in group] for group in texts]

    named = {"over_optimisation": 0.1, "answers": answers, "judge": "2"}
    settings = RewardChecks.model_validate(named)
    evidence, none = evidence_of([Pair(prompt("q"), "a b", "c d")]), np.zeros(0)
    candidate = RatedVersion(Readings(np.ones(1), none), scorer(lambda n: n))
    (check,) = check_reward(evidence, candidate, None, settings, judge=scorer(lambda n: -abs(n - 4)))
    assert not check.passed
    assert rule_of(check.reason) == "over_optimisation"
    sides = check.cases[0].sides
    assert (float(sides[0].text), sides[1].text) == (9.0, "4")
    (check,) = check_reward(evidence, candidate, None, settings, judge=scorer(lambda n: n**2))
    assert check.passed
    (check,) = check_reward(evidence, candidate, None, settings)
    assert not check.passed
    for missing in named:
        with pytest.raises(ValueError, match="set all, or none"):
            RewardChecks.model_validate({name: value for name, value in named.items() if name != missing})
