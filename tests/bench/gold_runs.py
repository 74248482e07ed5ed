"""One run of the experiment: an algorithm learns from the proxy or the choices, the judge looks on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from gold_watch import Watched
from gold_world import MAX_NEW_TOKENS, World, answers_of, asked

from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop_trainer.data.completions import sequence_logprobs
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation import hacking_watch as watch
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.policy.dpo_train import DpoProgress, encode_pairs, train_policy
from rewardloop_trainer.policy.offline_settings import DpoSettings
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online_registry import ONLINE
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Rollout

AlgorithmName: TypeAlias = Literal["ppo", "grpo", "rloo", "dpo", "online-dpo"]

# Of the tuning on seed 0.
_ONLINE: dict[str, Any] = {
    "steps": 40,
    "prompts": 24,
    "responses": 4,
    "max_new_tokens": MAX_NEW_TOKENS,
    "minibatch": 48,
    "learning_rate": 1e-3,
    "beta": 0.05,
    "checkpoint_every_steps": 0,
}
_OWN: dict[str, dict[str, Any]] = {
    "ppo": {"critic": {"learning_rate": 5e-3}, "beta": 0.1},
    "grpo": {},
    "rloo": {},
    "online-dpo": {"steps": 48, "prompts": 16, "minibatch": 32, "learning_rate": 6e-4, "human_share": 0.5},
}
_DPO = {"beta": 0.1, "learning_rate": 1e-3, "batch_pairs": 32, "epochs": 1, "checkpoint_every_steps": 0}
_DPO_EVERY_STEPS = 8
_DPO_WATCHED = 64


@dataclass(frozen=True, slots=True)
class Point:
    """After a step. ``kl``: to the starter, nats an answer. ``gold``, ``proxy``: means over the same answers, in the
    starter's deviations from its mean. ``uncertainty``: the heads' deviation."""

    step: int
    kl: float
    gold: float
    proxy: float
    uncertainty: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Run:
    """``win_rate``, ``low``, ``high``: by the judge against the starter, on ``judged`` held-out prompts, temperature 1,
    with its 95% interval. ``seconds``, ``cpu_seconds``: of learning, without the judging at the end."""

    algorithm: str
    seed: int
    labels: str
    settings: dict[str, Any]
    proxy_accuracy: float
    win_rate: float
    low: float
    high: float
    judged: int
    kl: float
    gold: float
    proxy: float
    seconds: float
    cpu_seconds: float
    points: list[Point]
    watched: list[watch.Point]
    alarm_step: int
    alarm: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def learn(
    world: World,
    algorithm: AlgorithmName,
    changes: dict[str, Any],
    on_point: Callable[[Point], None],
    *,
    is_watched: bool = False,
) -> Run:
    """``changes``: of the algorithm's settings. ``is_watched``: the watch against reward hacking looks on too."""
    reference, policy = world.starter.policy(), world.starter.policy()
    started, cpu_started = time.monotonic(), time.process_time()
    points: list[Point] = []
    watched = Watched(world)

    def note(point: Point) -> None:
        points.append(point)
        if is_watched:
            watched.look(policy, point.step)
        on_point(point)

    if algorithm == "dpo":
        settings: Any = DpoSettings.model_validate(_DPO | changes | {"seed": world.judge.seed})
        _learn_offline(world, policy, reference, settings, note)
    else:
        settings = OnlineSettings.model_validate(_ONLINE | _OWN[algorithm] | changes)
        _learn_online(world, policy, algorithm, settings, note)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    said = [said for (said,) in answers_of(policy, world.starter.encoder, world.heldout, seed=3_000 + world.judge.seed)]
    last = _looked_at(world, reference, world.heldout, said, len(points))
    won = world.judge.win_rate(world.heldout, [s.text for s in said], world.rivals)
    return Run(
        algorithm=algorithm,
        seed=world.judge.seed,
        labels=world.labels,
        settings=settings.model_dump(mode="json"),
        proxy_accuracy=world.proxy.accuracy,
        win_rate=won.mean,
        low=won.low,
        high=won.high,
        judged=len(said),
        kl=last.kl,
        gold=last.gold,
        proxy=last.proxy,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        points=points,
        watched=watched.points,
        alarm_step=watched.alarm_step,
        alarm=watched.reason,
    )


def _learn_online(
    world: World, policy: Any, name: OnlineAlgorithm, settings: OnlineSettings, note: Callable[[Point], None]
) -> None:
    """The judge reads the very answers that the step learns from."""
    heard: list[tuple[list[str], list[str]]] = []

    def score(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
        questions = [prompt[0].content for prompt, group in zip(prompts, texts, strict=True) for _ in group]
        heard.append((questions, [text for group in texts for text in group]))
        return world.proxy.score(prompts, texts)

    def on_step(done: StepDone) -> None:
        figures = done.figures
        gold = world.gold(*heard.pop())
        note(Point(done.step, figures["kl"], gold, figures["score"], figures["uncertainty"], figures["tokens"]))

    pairs = encode_pairs(world.starter.encoder, world.pairs).pairs if ONLINE[name].takes_human_pairs else ()
    prompts = [asked(question) for question in world.prompts]
    task = OnlineTask(algorithm_of(name, settings), settings, prompts, pairs)
    train_online(policy, world.starter.encoder, task, score, RunControl(on_step=on_step), seed=world.judge.seed)


def _learn_offline(
    world: World, policy: Any, reference: Any, settings: DpoSettings, note: Callable[[Point], None]
) -> None:
    """From the choices themselves; the proxy only looks on, as the judge does."""
    watched = world.prompts[:_DPO_WATCHED]

    def on_progress(done: DpoProgress) -> None:
        if done.step % _DPO_EVERY_STEPS == 0:
            groups = answers_of(policy, world.starter.encoder, watched, seed=4_000 + done.step)
            note(_looked_at(world, reference, watched, [said for (said,) in groups], done.step))

    train_policy(policy, world.starter.encoder, world.pairs, (), settings, RunControl(on_step=on_progress))


def _looked_at(world: World, reference: Any, questions: Sequence[str], said: Sequence[Rollout], step: int) -> Point:
    """KL as in k1, on the policy's own answers."""
    texts = [rollout.text for rollout in said]
    rows = [rollout.sequence for rollout in said]
    before = sequence_logprobs(reference, rows, world.starter.encoder.format.pad, 8192).tolist()
    scored = world.proxy.score([asked(question) for question in questions], [[text] for text in texts])
    rewards = [group[0] for group in scored if group[0] is not None]
    return Point(
        step,
        statistics.mean(rollout.logprob - logprob for rollout, logprob in zip(said, before, strict=True)),
        world.gold(questions, texts),
        statistics.mean(reward.score for reward in rewards),
        statistics.mean(reward.uncertainty for reward in rewards),
        statistics.mean(row.tokens for row in rows),
    )
