"""With autocast every trainer multiplies in bfloat16, and what learns stays in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.learning_runs import learning_seed
from support.policy_versions import byte_encoder
from support.reward_bases import encoder_for, save_base
from support.tiny_policies import save_tiny_policy
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.computing.autocast import autocast_of, computing_types
from rewardloop_trainer.data.dialogues import Dialogue, encode_dialogues, keeps_apart
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt
from rewardloop_trainer.learning import model_load
from rewardloop_trainer.learning.model_load import UnusableDevice, check_machine, choose_products
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.settings import LearnerSettings
from rewardloop_trainer.policy.dpo_train import train_policy
from rewardloop_trainer.policy.kto_train import train_kto
from rewardloop_trainer.policy.offline_settings import DpoSettings, KtoSettings
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online.update import ratio_tolerance
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.sft import train_sft
from rewardloop_trainer.policy.sft_settings import SftSettings
from rewardloop_trainer.policy.start import finished, load_causal_lm, load_to_learn
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward

torch.set_num_threads(1)
ENCODER = byte_encoder(160)
PAIRS = [
    Pair((Turn("user", f"question {i}"),), "yes " * (3 + i % 4), "no " * (5 - i % 3), event_id=str(i))
    for i in range(12)
]
THUMBS = [Labelled(p.prompt, text, label) for p in PAIRS for text, label in ((p.chosen, 1.0), (p.rejected, 0.0))]
DIALOGUES = [Dialogue.answered(p.prompt, p.chosen) for p in PAIRS]
COMMON = {"learning_rate": 1e-3, "checkpoint_every_steps": 0, "epochs": 3}
ONLINE = OnlineSettings.model_validate(
    {"steps": 2, "prompts": 3, "responses": 2, "max_new_tokens": 8, "learning_rate": 1e-3, "warmup_share": 0.0}
)
AUTOCAST = {"computation": "bfloat16"}


def letters(_: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
    return [[Reward(float(sum(c.islower() for c in text))) if text.strip() else None for text in g] for g in texts]


def by_sft(model: Any) -> list[float]:
    losses = list[float]()
    train_sft(model, ENCODER, DIALOGUES, SftSettings.model_validate(COMMON), lambda done: losses.append(done.loss))
    return losses


def by_dpo(model: Any) -> list[float]:
    losses = list[float]()
    control: RunControl[Any, Any] = RunControl(on_step=lambda done: losses.append(done.figures.loss))
    train_policy(model, ENCODER, PAIRS, [], DpoSettings.model_validate(COMMON), control)
    return losses


def by_kto(model: Any) -> list[float]:
    losses = list[float]()
    control: RunControl[Any, Any] = RunControl(on_step=lambda done: losses.append(done.figures.loss))
    train_kto(model, ENCODER, THUMBS, [], KtoSettings.model_validate(COMMON), control)
    return losses


def online(model: Any) -> list[float]:
    task = OnlineTask(algorithm_of("grpo", ONLINE), ONLINE, [pair.prompt for pair in PAIRS[:3]])
    train_online(model, ENCODER, task, letters)
    return []  # its answers differ, and so do its losses


TRAINERS: dict[str, Callable[[Any], list[float]]] = {"sft": by_sft, "dpo": by_dpo, "kto": by_kto, "online": online}


def settings(**changes: Any) -> LearnerSettings:
    return LearnerSettings.model_validate({"device": "cpu", **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_policy(tmp_path_factory.mktemp("base"), initializer_range=0.1))


def load(base: str, **changes: Any) -> Any:
    return load_to_learn(base, settings(**changes), "dpo", tokens=8192, longest=160)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(2, 42).view(2, 20), use_cache=False).logits
    return found


@pytest.fixture
def stepped() -> Iterator[set[torch.dtype]]:
    """The types of weights, gradients and moments of every step of an optimizer in the test."""
    types = set[torch.dtype]()

    def note(optimizer: torch.optim.Optimizer, _: Any, __: Any) -> None:
        learned = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        moments = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        types.update(t.dtype for t in (*learned, *(p.grad for p in learned), *moments))

    hook = register_optimizer_step_post_hook(note)
    yield types
    hook.remove()


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("changes", [{}, {"method": "lora", "lora": {"rank": 4, "modules": "all"}}])
def test_policies_learn_in_bfloat16_over_weights_in_float32(
    base: str, trainer: str, changes: dict[str, Any], stepped: set[torch.dtype]
) -> None:
    torch.manual_seed(learning_seed())
    exact = TRAINERS[trainer](load(base, **changes))
    model = load(base, **changes, **AUTOCAST)
    before = logits(model)
    assert before.dtype == torch.bfloat16
    losses = TRAINERS[trainer](model)
    assert losses == pytest.approx(exact, rel=0.02)
    assert trainer == "online" or losses != exact
    assert {p.dtype for p in model.parameters()} == stepped == {torch.float32}
    assert not torch.equal(logits(model), before)
    policy = finished(model, base, settings(**changes, **AUTOCAST))
    assert logits(policy).dtype == torch.float32
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_reward_models_learn_in_bfloat16_over_weights_in_float32(tmp_path: Path, stepped: set[torch.dtype]) -> None:
    start, encoder = save_base("bert", tmp_path, learning_seed()), encoder_for("bert", max_length=96)
    found = []
    for changes in ({}, AUTOCAST):
        model = RewardModel.from_base(start, heads=2)
        seen = list[torch.dtype]()
        first = model.trunk.encoder.layer[0].output.dense  # type: ignore[union-attr, index]
        first.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output.dtype))
        chosen = {**COMMON, **changes, "device": "cpu", "sequences_per_step": 8, "seed": learning_seed()}
        losses = list[float]()
        training = RewardTraining.model_validate(chosen)
        train_reward(model, encoder, PAIRS, [], training, on_progress=lambda done, kept=losses: kept.append(done.loss))
        assert set(seen[:1]) == {torch.bfloat16 if changes else torch.float32}
        assert type(model) is RewardModel
        assert autocast_of(model.trunk) is None
        found.append(losses)
    assert found[1] == pytest.approx(found[0], abs=0.02)
    assert found[0] != found[1]
    assert stepped == {torch.float32}


def test_the_check_that_sampling_and_learning_agree_knows_how_they_round(base: str) -> None:
    model = load(base, **AUTOCAST)
    assert computing_types(model) == {torch.float32, torch.bfloat16}
    assert ratio_tolerance(computing_types(model)) > 20 * ratio_tolerance(computing_types(load(base)))
    model.lm_head.weight.data *= 10  # logits as large as those of a trained model
    narrow = ONLINE.model_copy(update={"micro_batch_tokens": 64, "epochs": 2})
    train_online(model, ENCODER, OnlineTask(algorithm_of("grpo", narrow), narrow, [p.prompt for p in PAIRS]), letters)


def test_a_reference_rounds_as_the_policy_does(base: str) -> None:
    model = load(base, **AUTOCAST)
    reference = Reference("1", "digest", lambda: load_causal_lm(base, settings()))
    assert torch.equal(logits(reference.beside(model)), logits(model))
    assert not torch.equal(logits(reference.beside(load(base))), logits(model).float())
    figures = dict[str, float]()
    control: RunControl[Any, Any] = RunControl(on_step=lambda done: figures.setdefault("margin", done.figures.margin))
    train_policy(model, ENCODER, PAIRS, [], DpoSettings.model_validate(COMMON), control, reference=reference)
    assert abs(figures["margin"]) < 1e-5


def test_a_copy_under_autocast_computes_with_its_own_weights(base: str) -> None:
    model = load(base, **AUTOCAST)
    copied = copy.deepcopy(model)
    before = logits(copied)
    model.lm_head.weight.data.zero_()
    assert torch.equal(logits(copied), before)
    assert before.dtype == torch.bfloat16


def test_packed_examples_are_seen_to_keep_apart_as_far_as_rounding_lets_them(base: str) -> None:
    model = load(base, **AUTOCAST)
    examples, _ = encode_dialogues(ENCODER, DIALOGUES)
    assert keeps_apart(model, examples, 0)
    packed = SftSettings.model_validate({**COMMON, "packing": True})
    train_sft(model, ENCODER, DIALOGUES, packed)


def test_tf32_is_for_gpus_and_ends_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_load, "device_of", lambda _: torch.device("cpu"))
    with pytest.raises(UnusableDevice, match="tf32 needs a GPU"):
        check_machine(settings(tf32=True))
    try:
        choose_products(torch.device("cpu"), tf32=True)
        assert torch.get_float32_matmul_precision() == "highest"
        choose_products(torch.device("cuda"), tf32=True)
        assert torch.get_float32_matmul_precision() == "high"
        choose_products(torch.device("cuda"), tf32=False)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_computing_more_exactly_than_the_weights_are_is_refused() -> None:
    with pytest.raises(ValueError, match="computation float32 needs weights float32"):
        settings(weights="bfloat16", computation="float32")
    assert autocast_of(torch.nn.Linear(1, 1)) is None
