"""The dispatch on the algorithm: what each one needs before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.policy_versions import byte_encoder

from rewardloop.formats.text import Turn
from rewardloop.formats.vocabulary import ONLINE_ALGORITHMS
from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.policy.examples import Examples, NothingToLearnFrom
from rewardloop_trainer.policy.learn import learn_policy
from rewardloop_trainer.policy.settings import PolicySettings

PROMPT = (Turn("user", "How are you?"),)
NOTHING = Examples((), (), ())


def test_examples_hold_each_prompt_once_every_comparison_and_every_thumb() -> None:
    examples = Examples.of([Pair(PROMPT, "a", "b"), RankedList(PROMPT, ("a", "b", "c")), Labelled(PROMPT, "a", 1.0)])
    assert list(examples.prompts) == [PROMPT]
    assert [(p.chosen, p.rejected) for p in examples.pairs] == [("a", "b"), ("a", "b"), ("a", "c"), ("b", "c")]
    assert [t.response for t in examples.thumbs] == ["a"]


@pytest.mark.parametrize(
    ("algorithm", "train", "reason"),
    [
        *(
            (
                name,
                Examples((PROMPT,), (), (Labelled(PROMPT, "a", 1.0),)),
                f"{name} learns from pairs.* kto, and so auto",
            )
            for name in ("dpo", "simpo", "orpo")
        ),
        ("kto", Examples((PROMPT,), (), ()), "kto learns from thumbs"),
        # What weighs nothing is not there: the thumb has no pair beside it, and the pair is none to learn from.
        (
            "dpo",
            Examples((PROMPT,), (Pair(PROMPT, "a", "b", weight=0.0),), (Labelled(PROMPT, "a", 1.0),)),
            "kto, and so auto, learns from the 1 thumbs",
        ),
        ("kto", Examples((PROMPT,), (Pair(PROMPT, "a", "b", weight=0.0),), ()), "kto learns from thumbs"),
        ("auto", Examples((PROMPT,), (), ()), "no pair, no thumb and no rating"),
        *((name, NOTHING, "no prompt to train on") for name in ONLINE_ALGORITHMS),
    ],
)
def test_an_algorithm_without_its_kind_of_example_says_what_it_needs(
    algorithm: str, train: Examples, reason: str, tmp_path: Path
) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("nothing was learned")

    settings = PolicySettings.model_validate({"algorithm": algorithm})
    with pytest.raises(NothingToLearnFrom, match=reason):
        learn_policy(
            None,
            byte_encoder(),
            train,
            NOTHING,
            settings,
            lambda *_: [],
            RunControl(tmp_path, unexpected, save=unexpected),
        )
