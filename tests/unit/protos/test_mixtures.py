"""The file of mixtures, its rules, and the total."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from rewardloop.formats.mixing.mixture_file import MOST_MIXTURES, MOST_PARTS, BadMixtures, MixtureFile, read_mixtures
from rewardloop.formats.mixing.names import MOST_NAMED, further_models, is_name
from rewardloop.formats.mixing.rules import FormatRule, LengthRule, ReferenceRule
from rewardloop.formats.mixing.total import NotFinite, PartValues, totals_of

MODELS = {"reward", "helpful", "harmless", "love"}


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str) -> MixtureFile:
        (tmp_path / "mixtures.toml").write_text(text)
        return read_mixtures(tmp_path / "mixtures.toml", MODELS)

    return read


def parts(text: str) -> str:
    return f'version = "1"\n[mixtures.product.parts]\n{text}\n'


def test_parts_are_models_by_their_own_name_or_rules(read) -> None:
    text = parts(
        'love = { weight = 1 }\nsafe = { model = "harmless", floor = 0 }\n'
        'brief = { rule = "length", most = 9, floor = -0.5 }'
    )
    mixture = read(text).mixtures["product"]
    assert mixture.models == {"love": "love", "safe": "harmless"}
    assert list(mixture.rules) == ["brief"]
    assert mixture.has_floors
    assert not mixture.needs_reference
    assert mixture.digest == read(text).mixtures["product"].digest
    assert mixture.digest != read(text.replace("weight = 1", "weight = 2")).mixtures["product"].digest


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "mixtures.product.parts: "),
        ('version = "1"', "mixtures: "),
        ("version = 1\nmixtures = {}", "version: "),
        ("not toml", "mixtures.toml"),
        (parts("love = { weight = nan }"), "love.weight: "),
        (parts("love = { weight = inf }"), "love.weight: "),
        (parts("love = { weight = 1e7 }"), "love.weight: "),
        (parts('love = { weight = "1" }'), "love.weight: "),
        (parts("love = { weight = true }"), "love.weight: "),
        (parts("love = { floor = nan }"), "love.floor: "),
        (parts("love = { weight = 1, wait = 2 }"), "love.wait: unknown key"),
        (parts("love = {}"), "neither a weight nor a floor"),
        (parts("love = { weight = 1, penalty = 2 }"), "has a penalty, but no floor"),
        (parts("love = { floor = 0, penalty = 0 }"), "love.penalty: "),
        (parts("unknown = { weight = 1 }"), "'unknown' is no reward model here: harmless, helpful, love, reward"),
        (parts("policy = { weight = 1 }"), "'policy' is no reward model"),
        (parts("product = { weight = 1 }"), "'product' is a mixture"),
        (parts("other = { weight = 1 }\n[mixtures.other.parts]\nlove = { weight = 1 }"), "'other' is a mixture"),
        (parts('love = { weight = 1 }\ntoo = { model = "love", floor = 1 }'), "two parts are the model 'love'"),
        (parts('"../love" = { model = "love", weight = 1 }'), "is no name of a part"),
        (parts('x = { rule = "regex", weight = 1 }'), "rule is not length, format or reference"),
        (parts('x = { rule = "length", weight = 1 }'), "give least, most, or both"),
        (parts('x = { rule = "length", least = 9, most = 3, weight = 1 }'), "least is above most"),
        (parts('x = { rule = "format", weight = 1 }'), "give json"),
        (parts('x = { rule = "reference", compare = "embedding", weight = 1 }'), "x.compare: "),
        ('version = "1"\n[mixtures.love.parts]\nlove = { weight = 1 }', "mixtures.love: "),
        ('version = "1"\n[mixtures.policy.parts]\nlove = { weight = 1 }', "mixtures.policy: "),
        ('version = "1"\n[mixtures."a b".parts]\nlove = { weight = 1 }', "mixtures.a b: "),
        ('version = "a b"\n[mixtures.a.parts]\nlove = { weight = 1 }', "version: "),
        (
            parts("\n".join(f'x{i} = {{ rule = "length", most = 1, weight = 1 }}' for i in range(MOST_PARTS + 1))),
            "at most",
        ),
        (
            'version = "1"\n'
            + "".join(f"[mixtures.m{i}.parts]\nlove = {{ weight = 1 }}\n" for i in range(MOST_MIXTURES + 1)),
            "at most",
        ),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_by_one_that_names_it(read, text: str, problem: str) -> None:
    with pytest.raises(BadMixtures) as found:
        read(text or 'version = "1"\n[mixtures.product]\nparts = {}')
    assert problem in str(found.value)
    assert all(len(line) < 300 for line in str(found.value).splitlines()[:3])


def test_all_faults_of_a_file_are_named_at_once(read) -> None:
    text = parts(
        'love = { weight = "1", penalty = 2 }\nunknown = { weight = 1 }\n"Too" = { model = "love", wait = 2 }\n'
        'also = { model = "harmless", floor = 0 }\nsafe = { model = "harmless", floor = 1 }\n'
        'brief = { rule = "length", least = 9, most = 3 }\nlong = { rule = "length" }\nx = { rule = "regex" }\n'
        '[mixtures."a b".parts]\nproduct = { weight = 1 }'
    )
    with pytest.raises(BadMixtures) as found:
        read(text)
    told = [line.partition("mixtures.toml: ")[2] for line in str(found.value).splitlines()]
    product = "mixtures.product.parts"
    assert sorted(told) == sorted(
        [
            f"{product}.love.weight: Input should be a valid number",
            f"{product}.love: has a penalty, but no floor",
            f"{product}.unknown: 'unknown' is no reward model here: harmless, helpful, love, reward",
            f"{product}.Too.wait: unknown key",
            f"{product}.Too: has neither a weight nor a floor, so that it would not count",
            f"{product}.brief: has neither a weight nor a floor, so that it would not count",
            f"{product}.brief: least is above most",
            f"{product}.long: has neither a weight nor a floor, so that it would not count",
            f"{product}.long: give least, most, or both",
            f"{product}.x: rule is not length, format or reference",
            "mixtures.product: 'Too' is no name of a part",
            "mixtures.product: two parts are the model 'harmless': give one of them weight and floor",
            "mixtures.product: two parts are the model 'love': give one of them weight and floor",
            "mixtures.a b: is not valid as a name, or is that of a model",
            "mixtures.a b.parts.product: 'product' is a mixture: parts are models and rules",
        ]
    )


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadMixtures, match="No such file"):
        read_mixtures(tmp_path / "none.toml", MODELS)
    (tmp_path / "large.toml").write_text("#" * 2**21)
    with pytest.raises(BadMixtures, match="bytes"):
        read_mixtures(tmp_path / "large.toml", MODELS)


def test_names_are_bounded_in_form_and_number() -> None:
    assert further_models(["helpful", "love-2", "x_y"]) == ("helpful", "love-2", "x_y")
    for wrong in ("", "Helpful", "2nd", "a/b", "..", "a b", "é", "a\n", "a" * 33, "\u0440eward"):
        assert not is_name(wrong)
        with pytest.raises(ValueError, match="is no name of a model"):
            further_models([wrong])
    for wrong_list, problem in (
        (["reward"], "needs no mention"),
        (["policy"], "needs no mention"),
        (["a", "a"], "named twice"),
        ([f"m{i}" for i in range(10_000)], f"at most {MOST_NAMED}"),
    ):
        with pytest.raises(ValueError, match=problem):
            further_models(wrong_list)


def test_length_counts_what_is_too_much_or_too_little_as_a_share_of_the_bound() -> None:
    rule = LengthRule(rule="length", least=2, most=4)
    said = {n: rule.value("w " * n, "") for n in (0, 1, 2, 4, 6, 8, 80)}
    assert said == {0: -1.0, 1: -0.5, 2: 0.0, 4: 0.0, 6: -0.5, 8: -1.0, 80: -1.0}
    assert LengthRule(rule="length", unit="characters", most=4).value("abcdef", "") == -0.5


def test_format_asks_for_all_that_it_names() -> None:
    json_object = FormatRule(rule="format", json="object")
    texts = {' {"a": 1} ': 1.0, "[1]": 0.0, "{": 0.0, "": 0.0, "[" * 100_000: 0.0, "9" * 100_000: 0.0}
    assert {text: json_object.value(text, "") for text in texts} == texts
    assert FormatRule(rule="format", json="any").value("[1]", "") == 1.0
    rule = FormatRule(rule="format", starts_with="Answer:", ends_with=".", contains=["is"], lacks=["sorry"])
    assert rule.value(" Answer: it is so. ", "") == 1.0
    assert rule.value("Answer: it is so, SORRY.", "") == 0.0
    assert rule.value("Answer: so it was.", "") == 0.0


@pytest.mark.parametrize(
    ("compare", "response", "reference", "value"),
    [
        ("exact", " The  Answer ", "the answer", 1.0),
        ("exact", "the answer.", "the answer", 0.0),
        ("contains", "So the answer it is", "The answer", 1.0),
        ("contains", "no", "The answer", 0.0),
        ("number", "First 3, so it makes 1,234.50.", "1234.5", 1.0),
        ("number", "It is -2", "#### -2", 1.0),
        ("number", "It is 2", "-2", 0.0),
        ("number", "none", "2", 0.0),
        ("number", "2", "none", 0.0),
    ],
)
def test_a_reference_is_compared(compare: str, response: str, reference: str, value: float) -> None:
    assert ReferenceRule(rule="reference", compare=compare).value(response, reference) == value


def test_rules_read_the_worst_text_in_time_that_grows_with_its_length() -> None:
    rules = [
        LengthRule(rule="length", most=3),
        FormatRule(rule="format", json="any", contains=["a" * 200], lacks=["a" * 199 + "b"]),
        ReferenceRule(rule="reference", compare="number"),
        ReferenceRule(rule="reference", compare="contains"),
    ]
    for text in ("a" * 262_144, "1," * 131_072, "-" * 262_144, "[" * 262_144, "1" * 262_144, "1,111" * 52_000):
        started = time.process_time()
        for rule in rules:
            assert math.isfinite(rule.value(text, text[:200_000] + "c"))
        assert time.process_time() - started < 2.0


def test_the_total_is_the_weighted_sum_less_what_is_below_a_floor(read) -> None:
    mixture = read(parts("love = { weight = 2.0 }\nharmless = { weight = 0.5, floor = 1.0, penalty = 3.0 }")).mixtures[
        "product"
    ]
    said = {"love": PartValues([1.0, 4.0], [0.1, 0.1]), "harmless": PartValues([1.0, 0.0], [0.2, 0.2])}
    met, broken = totals_of(mixture, said)
    assert (met.score, met.meets_floors) == (2.5, True)
    assert (broken.score, broken.meets_floors) == (8.0 - 3.0, False)
    assert met.uncertainty == pytest.approx(math.hypot(0.2, 0.1))
    assert broken.uncertainty == pytest.approx(
        math.hypot(0.2, 3.5 * 0.2)
    )  # below the floor it moves by the penalty too


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_what_is_no_finite_number_makes_no_total(read, value: float) -> None:
    mixture = read(parts("love = { weight = 1e3, floor = 0 }")).mixtures["product"]
    with pytest.raises(NotFinite):
        totals_of(mixture, {"love": PartValues([value], [0.0])})
    with pytest.raises(NotFinite):
        totals_of(mixture, {"love": PartValues([1.0], [value])})
