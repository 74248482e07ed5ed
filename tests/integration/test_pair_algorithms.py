"""What algorithms learn from judgements of the other kind, SimPO and ORPO, and what people's weights do online."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.learning_runs import learning_seed
from support.policy_rounds import Setting, thumb_rows
from support.policy_versions import byte_encoder, small_llama

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.completions import sequence_logprobs
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.policy.dpo_train import DpoProgress, train_policy
from rewardloop_trainer.policy.examples import Examples
from rewardloop_trainer.policy.learn import Trained, learn_policy
from rewardloop_trainer.policy.offline_settings import OrpoSettings, SimpoSettings
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of, task_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.settings import PolicySettings

torch.set_num_threads(1)
ENCODER = byte_encoder(64)
FAST: dict[str, Any] = {"learning_rate": 2e-3, "epochs": 4, "batch_pairs": 8}


def asked(i: int) -> Prompt:
    return (Turn("user", f"q{i}"),)


def pairs(prompts: range) -> list[Pair]:
    return [Pair(asked(i), "please do", "no way") for i in prompts]


def thumbs(prompts: range) -> list[Labelled]:
    return [Labelled(asked(i), text, label) for i in prompts for text, label in (("please do", 1.0), ("no way", 0.0))]


@pytest.mark.learning
@pytest.mark.parametrize(
    "settings", [SimpoSettings.model_validate(FAST), OrpoSettings.model_validate({**FAST, "odds_weight": 1.0})]
)
def test_algorithms_without_a_reference_learn_what_is_preferred(settings: SimpoSettings | OrpoSettings) -> None:
    seen: list[DpoProgress] = []
    found = train_policy(
        small_llama(learning_seed()),
        ENCODER,
        pairs(range(32)),
        pairs(range(90, 98)),
        settings,
        RunControl(on_step=seen.append),
        seed=learning_seed(),
    ).figures
    assert found["heldout_accuracy"] == 1.0
    assert found["heldout_margin"] > seen[0].figures.margin + 0.5
    assert found["heldout_chosen_log_ratio"] > 5  # in nats against the start, which the loss does not know
    assert found["heldout_loss"] < 0.6 * seen[0].figures.loss


def learned(examples: Examples, **settings: Any) -> dict[str, float]:
    """The figures of a run on the examples, measured on pairs and thumbs of other prompts."""
    saved: list[Trained] = []
    heldout = Examples((), pairs(range(90, 98)), ())
    fast = {**FAST, "kto": {"learning_rate": 2e-3, "epochs": 4, "batch_thumbs": 8}, "seed": learning_seed()}
    learn_policy(
        small_llama(learning_seed()),
        ENCODER,
        examples,
        heldout,
        PolicySettings.model_validate({**fast, **settings}),
        lambda *_: [],
        RunControl(save=saved.append),
    )
    return dict(saved[0].figures)


@pytest.mark.learning
def test_dpo_learns_from_opposite_thumbs_and_kto_from_pairs() -> None:
    by_dpo = learned(Examples((), (), thumbs(range(32))), algorithm="dpo")
    assert by_dpo["train_pairs"] == 32
    assert by_dpo["heldout_accuracy"] == 1.0
    assert by_dpo["heldout_margin"] > 0.5
    by_kto = learned(Examples((), pairs(range(32)), ()), algorithm="kto")
    assert by_kto["train_thumbs"] == 64
    assert by_kto["heldout_wanted_log_ratio"] > 3
    assert by_kto["heldout_unwanted_log_ratio"] < -3


@pytest.mark.learning
def test_one_persons_many_signals_do_not_outvote_twenty_people() -> None:
    """One person prefers "no way" 300 times; twenty people prefer "please do" 8 times each."""
    crowd = [Pair(asked(i), "please do", "no way", annotator=f"p{i % 20}") for i in range(160)]
    loud = [Pair(asked(i), "no way", "please do", annotator="loud") for i in range(300)]
    both = Examples((), [*crowd, *loud], ())
    assert learned(both)["heldout_accuracy"] == 1.0
    assert learned(both, most_person_share=1.0)["heldout_accuracy"] == 0.0


def like(_: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
    """All responses are liked alike, so that only people's pairs teach."""
    return [[Reward(0.0) if text.strip() else None for text in group] for group in texts]


@pytest.mark.parametrize("weight", [0.9, 0.1])
def test_online_dpo_learns_from_peoples_pairs_by_their_weights(weight: float) -> None:
    """People contradict each other, and the heavier signal decides."""
    online = {"steps": 4, "prompts": 2, "responses": 2, "max_new_tokens": 4, "learning_rate": 1e-3, "human_share": 0.6}
    rewards = {"missing_end_penalty": 0.0, "empty_score": 0.0}
    settings = PolicySettings.model_validate(
        {"algorithm": "online-dpo", "sft_weight": 0.0, "online": {**online, "warmup_share": 0.0, "rewards": rewards}}
    )
    weighed = [Pair(asked(1), "please do", "no way", weight), Pair(asked(1), "no way", "please do", 1 - weight)]
    task = task_of("online-dpo", settings, ENCODER, [asked(0), asked(1)], weighed, 0)
    rows = [row for pair in task.human_pairs[:1] for row in pair.rows]
    model = small_llama()
    before = sequence_logprobs(model, rows, 0, 1_000)
    train_online(model, ENCODER, task, like)
    moved = sequence_logprobs(model, rows, 0, 1_000) - before
    is_heavier = task.human_pairs[0].weight > 0.5
    assert ((moved[0] - moved[1]).item() > 0) == is_heavier
    assert abs((moved[0] - moved[1]).item()) > 0.1


def test_groups_that_score_alike_are_replaced_by_others() -> None:
    settings = PolicySettings.model_validate(
        {"online": {"steps": 2, "prompts": 2, "responses": 2, "max_new_tokens": 4, "max_batches": 6}}
    ).online
    asked_for: list[list[Prompt]] = []

    def score(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
        """Responses to even prompts differ in score, those to odd ones do not."""
        asked_for.append(list(prompts))
        return [
            [Reward(float(i if int(prompt[0].content[1:]) % 2 == 0 else 0)) for i, _ in enumerate(group)]
            for prompt, group in zip(prompts, texts, strict=True)
        ]

    shaped = settings.model_copy(
        update={"rewards": settings.rewards.model_copy(update={"missing_end_penalty": 0.0, "empty_score": 0.0})}
    )
    task = OnlineTask(algorithm_of("dapo", shaped), shaped, [asked(i) for i in range(6)])
    history = train_online(small_llama(), ENCODER, task, score).history
    assert all(done.figures["groups_alike"] == 0.0 for done in history)
    assert sum(done.figures["batches"] for done in history) == len(asked_for)
    assert max(done.figures["batches"] for done in history) > 1


@pytest.mark.learning
def test_a_product_with_thumbs_alone_improves_its_policy_by_default(tmp_path: Path, redis_url: str) -> None:
    kto = {"learning_rate": 1e-2, "batch_thumbs": 8, "epochs": 4}
    setting = Setting(tmp_path, redis_url, more=thumb_rows(200, "a", "bbbb"), kto=kto)
    assert setting.round().run() == "promoted", setting.current.state
    assert setting.store.manifest("policy", 2).notes["method"] == "kto"
