"""The judge's own prompts: a share of the training prompts, whatever is held out."""

from __future__ import annotations

import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.judge_share import of_judge, of_others, teaches_judge
from rewardloop_trainer.data.preferences import Pair, Prompt, split_of

PROMPTS: list[Prompt] = [(Turn("user", f"question {i}"),) for i in range(4_000)]


@pytest.mark.parametrize("heldout", [0.1, 0.5])
def test_share_of_the_training_prompts_is_the_judges(heldout: float) -> None:
    training = [prompt for prompt in PROMPTS if split_of(prompt, heldout) == "train"]
    assert sum(teaches_judge(prompt, 0.2) for prompt in training) / len(training) == pytest.approx(0.2, abs=0.03)


def test_no_record_teaches_both_and_all_ways_to_write_a_prompt_stay_together() -> None:
    records = [Pair(prompt, "a", "b") for prompt in PROMPTS]
    judges, others = of_judge(records, 0.3), of_others(records, 0.3)
    assert sorted((*judges, *others), key=repr) == sorted(records, key=repr)
    for prompt in PROMPTS[:200]:
        shouted = (Turn("user", prompt[0].content.upper() + " "),)
        assert teaches_judge(shouted, 0.3) == teaches_judge(prompt, 0.3)
    assert of_others(records, 0.0) == tuple(records)
