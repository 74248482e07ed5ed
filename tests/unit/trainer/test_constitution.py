"""A constitution and a rubric are read whole or refused, and an answer is revised by the principles that are drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from support.judge_endpoint import compared

from rewardloop.formats.text import Turn
from rewardloop_trainer.commands.critique.signals import signals_of
from rewardloop_trainer.data.preferences import Pair, TiedPair, from_event
from rewardloop_trainer.judging.chat import Reply, Request
from rewardloop_trainer.judging.constitution import Constitution, Principle, UnusableConstitution
from rewardloop_trainer.judging.revision import Asking, answer, count_principles, revise
from rewardloop_trainer.judging.rubric import SHIPPED, Rubric, UnusableRubric

PROMPT = (Turn("user", "Say something."),)
GOOD = """
name = "c"
version = "1"
[[principles]]
id = "one"
critique = "No bad words. Name them."
revision = "Write it without bad words."
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


def test_shipped_files_are_valid() -> None:
    assert Rubric.read(SHIPPED).label == "helpful@1"
    shipped = Constitution.read(SHIPPED.with_name("harmless.toml"))
    assert shipped.label == "harmless@1"
    assert [each.id for each in shipped.principles] == ["no-harm", "no-insult", "privacy", "honest", "helpful"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD + "weigth = 2\n", "principles.0.weigth: unknown key"),
        (GOOD.replace('version = "1"', 'version = "1"\nauthor = "me"'), "author: unknown key"),
        (GOOD.replace('version = "1"\n', ""), "version: Field required"),
        (GOOD + GOOD.partition("[[")[1] + GOOD.partition("[[")[2], "principles: one is there twice"),
        (GOOD + "weight = 0\n", "principles.0.weight"),
        ('name = "c"\nversion = "1"\nprinciples = []\n', "principles"),
        ("name = ", "is not TOML"),
    ],
)
def test_a_constitution_that_is_wrong_is_refused_with_its_key(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UnusableConstitution, match=problem) as error:
        Constitution.read(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_rubric_that_is_wrong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableRubric, match="extra: unknown key"):
        Rubric.read(written(tmp_path, 'name = "r"\nversion = "1"\ncriteria = "x"\nextra = 1\n'))
    with pytest.raises(UnusableRubric, match=r"version: Field required; extra: unknown key$"):
        Rubric.read(written(tmp_path, 'name = "r"\ncriteria = "x"\nextra = 1\n'))
    with pytest.raises(UnusableRubric, match="No such file"):
        Rubric.read(tmp_path / "none.toml")


def principle(name: str, weight: float = 1.0) -> Principle:
    return Principle(name, f"critique by {name}", f"revise by {name}", f"prefer by {name}", weight)


def test_principles_are_drawn_by_weight_without_repeats_and_the_same_for_the_same_answer() -> None:
    constitution = Constitution("c", "1", (principle("a", 3.0), principle("b"), principle("c")))
    assert constitution.drawn(3, "x") == constitution.drawn(3, "x")
    assert {each.id for each in constitution.drawn(3, "x")} == {"a", "b", "c"}
    assert len(constitution.drawn(5, "x")) == 5
    first = Counter(constitution.drawn(1, f"{i}")[0].id for i in range(2_000))
    assert abs(first["a"] / 2_000 - 0.6) < 0.05


class Writer:
    """Removes the word "bad" by principle a, adds "please" by principle b, and finds nothing by others."""

    name = "writer"

    def complete(self, request: Request) -> Reply:
        system, shown = request.messages[0].content, request.messages[1].content
        return Reply(self.says(system, shown), "writer-1", 1, 1)

    def says(self, system: str, shown: str) -> str:
        text = shown.partition("<answer>\n")[2].partition("\n</answer>")[0]
        if system.startswith("You compare"):
            _, a, b = compared([{"content": system}, {"content": shown}])
            difference = a.count("bad") - b.count("bad")
            return f"VERDICT: {'A' if difference < 0 else 'B' if difference > 0 else 'TIE'}"
        if system.startswith("You criticise"):
            if "critique by a" in system:
                return "It has a bad word." if "bad" in text else "NO CHANGE"
            return "It lacks please." if "critique by b" in system else " **No change.** "
        return text.replace("bad", "good") if "revise by a" in system else f"{text} please"


CONSTITUTION = Constitution("c", "7", (principle("a"), principle("b"), principle("other")))


def test_rounds_revise_one_after_another_and_every_principle_is_counted() -> None:
    revised = [revise(Writer(), CONSTITUTION, PROMPT, f"bad {i}", Asking(rounds=3)) for i in range(10)]
    assert {each.last for each in revised} == {f"good {i} please" for i in range(10)}
    counts = {each.id: each for each in count_principles(CONSTITUTION, revised)}
    assert (counts["a"].drawn, counts["a"].changed, counts["a"].preferred) == (10, 10, 1.0)
    assert (counts["b"].drawn, counts["b"].changed, counts["b"].words) == (10, 10, 1.0)
    assert counts["b"].preferred == 0.5
    assert (counts["other"].drawn, counts["other"].unchanged) == (10, 10)


def test_signals_are_an_edit_and_a_preference_for_each_change_with_principle_and_version() -> None:
    revised = revise(Writer(), CONSTITUTION, PROMPT, "bad", Asking(rounds=3))
    events = list(signals_of(revised, "writer", CONSTITUTION))
    assert [event.WhichOneof("signal") for event in events].count("edit") == 1
    (edit,) = [event for event in events if event.WhichOneof("signal") == "edit"]
    assert (edit.edit.edited_text, list(edit.responses)) == ("good please", ["bad"])
    assert sorted(edit.tags["principle"].split("+")) == ["a", "b"]
    records = {event.tags["principle"]: from_event(event)[0] for event in events if event is not edit}
    assert isinstance(records["a"], Pair)
    assert "good" in records["a"].chosen
    assert isinstance(records["b"], TiedPair)
    assert {event.tags["constitution"] for event in events} == {"c@7"}
    assert {event.annotator_id for event in events} == {"writer/c@7"}
    assert [e.event_id for e in signals_of(revised, "writer", CONSTITUTION)] == [e.event_id for e in events]
    assert len({event.event_id for event in events}) == 3


def test_a_revision_that_the_model_itself_finds_worse_is_no_edit() -> None:
    class Spoiler(Writer):
        def says(self, system: str, shown: str) -> str:
            if system.startswith("You write"):
                return "bad bad bad"
            return "It is dull." if system.startswith("You criticise") else super().says(system, shown)

    revised = revise(Spoiler(), CONSTITUTION, PROMPT, "fine", Asking(rounds=1))
    (event,) = signals_of(revised, "spoiler", CONSTITUTION)
    assert event.WhichOneof("signal") == "choice"
    assert event.responses[event.choice.chosen] == "fine"


def test_an_empty_or_cut_revision_leaves_the_answer_as_it_is() -> None:
    class Cut(Writer):
        def complete(self, request: Request) -> Reply:
            reply = super().complete(request)
            is_revision = request.messages[0].content.startswith("You write")
            return Reply(reply.text, reply.model, 1, 1, is_cut=is_revision)

    revised = revise(Cut(), CONSTITUTION, PROMPT, "bad", Asking(rounds=3))
    assert revised.last == "bad"
    assert count_principles(CONSTITUTION, [revised])[0].unreadable == 1
    assert list(signals_of(revised, "cut", CONSTITUTION)) == []


def test_the_model_answers_with_the_prompt_s_own_system_turn_if_it_has_one() -> None:
    class Echo(Writer):
        def says(self, system: str, shown: str) -> str:
            return f" {system}|{shown} "

    assert answer(Echo(), (Turn("system", "s"), Turn("user", "u")), Asking()) == "s|u"
    assert answer(Echo(), PROMPT, Asking()).endswith("|Say something.")
