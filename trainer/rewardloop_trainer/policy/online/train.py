"""The loop of every algorithm: sample, score, measure, learn. A killed run goes on from its checkpoint to the same
weights; several processes take the same steps as one would."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.policy.dpo_train import PolicyPair
from rewardloop_trainer.policy.losses.policy_gradient import importance, token_mean
from rewardloop_trainer.policy.online.experience import Algorithm, Samples
from rewardloop_trainer.policy.online.kl_control import KlControl
from rewardloop_trainer.policy.online.learner import Learner
from rewardloop_trainer.policy.online.sampler import LocalSampler, SampleCall, Sampler
from rewardloop_trainer.policy.online.shaping import Shaping
from rewardloop_trainer.policy.online.update import SEED_PRIME, Update
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Rollout

Score = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Sequence[Sequence[Reward | None]]]


@dataclass(frozen=True, slots=True)
class OnlineOutcome:
    """``model``: the policy to save. ``history``: the figures of each step that this call ran."""

    model: Any
    history: Sequence[StepDone]


def train_online(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    score: Score,
    algorithm: Algorithm,
    settings: OnlineSettings,
    *,
    seed: int = 0,
    human_pairs: Sequence[PolicyPair] = (),
    sampler: Sampler | None = None,
    checkpoint_dir: Path | None = None,
    on_step: Callable[[StepDone], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    save: Callable[[Any], None] = lambda _: None,
) -> OnlineOutcome:
    """Train ``model`` (a Hugging Face causal LM in float32) in place; as it comes, it is the reference.

    ``score`` gives each text's reward, None where it has none; it may raise. ``human_pairs``: for algorithms that learn
    from pairs. With the same arguments, a checkpoint in ``checkpoint_dir`` and the same scores, goes on from there to
    the weights of an uninterrupted run, bit for bit on one kind of CPU and number of threads. Where torch.distributed
    is initialised, every process makes this call; the first one's checkpoint counts. ``save`` is called with the policy
    before the checkpoint is deleted, in the first process only. Raises ValueError without prompts, `TrainingStopped`
    when asked to stop, and ArithmeticError when sampled and learned probabilities disagree.
    """
    if not prompts:
        raise ValueError("there is no prompt to answer")
    if settings.responses < 2 and not algorithm.has_critic:
        raise ValueError("without a critic, an answer is measured against others to its prompt: 2 responses or more")
    run = _Run(model, encoder, prompts, score, algorithm, settings, seed, human_pairs, sampler, checkpoint_dir)
    return run.to_the_end(on_step, should_stop, save)


class _Run:
    """One run: what learns, and how far it is."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        prompts: Sequence[Prompt],
        score: Score,
        algorithm: Algorithm,
        settings: OnlineSettings,
        seed: int,
        human_pairs: Sequence[PolicyPair],
        sampler: Sampler | None,
        checkpoint_dir: Path | None,
    ) -> None:
        self.world = World()
        self.prompts, self.score, self.algorithm = prompts, score, algorithm
        self.settings, self.seed, self.human_pairs = settings, seed, human_pairs
        self.checkpoint_dir = checkpoint_dir
        about = (type(algorithm).__name__, seed, settings.model_dump_json(), *prompts, *human_pairs)
        self.fingerprint = checkpoint.fingerprint_of(model, about)
        self.learner = Learner(model, encoder.format.pad, settings, has_critic=algorithm.has_critic)
        self.update = Update(self.learner, self.world, algorithm, settings, seed)
        self.sampler = sampler or LocalSampler(self.learner.policy, encoder)
        self.kl_control = KlControl(settings.beta, settings.kl_target, settings.kl_horizon)
        self.shaping = Shaping(settings.rewards)
        self.step = 0

    def to_the_end(
        self,
        on_step: Callable[[StepDone], None],
        should_stop: Callable[[], bool],
        save: Callable[[Any], None],
    ) -> OnlineOutcome:
        self._resume()
        steps, history = self.settings.steps, list[StepDone]()

        def stop_if_asked() -> None:
            if self.world.largest(float(should_stop())):
                raise TrainingStopped(f"stopped in step {self.step + 1} of {steps}")

        while self.step < steps:
            began = time.monotonic()
            figures, sampled_tokens = self._take_step(stop_if_asked)
            self.step += 1
            done = StepDone(self.step, steps, figures, sampled_tokens, time.monotonic() - began)
            history.append(done)
            every = self.settings.checkpoint_every_steps
            if every and self.step % every == 0 and self.step < steps:
                self._checkpoint()
            on_step(done)
        policy = self.learner.merged()
        if self.world.is_first:
            save(policy)
            if self.checkpoint_dir is not None:
                checkpoint.clear(self.checkpoint_dir)
        self.world.wait()
        return OnlineOutcome(policy, history)

    def _take_step(self, stop_if_asked: Callable[[], None]) -> tuple[dict[str, float], int]:
        temperature = self.settings.temperatures[self.step % len(self.settings.temperatures)]
        try:
            groups, scored, rewards, age = self._answers(temperature, stop_if_asked)
        except Exception:
            self._checkpoint()  # nothing of this step was learned yet: no step is lost with it
            raise
        said = [rollout for group in groups for rollout in group]
        pairs = self._human_pairs(len(groups))
        paired = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
        columns = max(row.tokens for row in (*(r.sequence for r in said), *paired))
        flat = torch.tensor([value for group in rewards for value in group], device=self.learner.policy.device)
        samples = self._samples(
            [r.sequence for r in said], [r.text for r in said], self.settings.responses, flat, columns, temperature
        )
        if age:
            samples = self._corrected(samples, said)
        kl = samples.sequence_kl()
        experience = self.algorithm.experience(samples, self.kl_control.beta)
        if pairs:
            verdicts = torch.tensor([1.0, 0.0], device=flat.device).repeat(len(pairs))
            texts = [str(i) for i in range(len(paired))]  # each its own: people saw that they differ
            judged = self._samples(paired, texts, 2, verdicts, columns, temperature)
            experience = experience.joined(self.algorithm.experience(judged, self.kl_control.beta))
        figures = {
            "score": _mean([r.score for group in scored for r in group if r is not None]),
            "uncertainty": _mean([r.uncertainty for group in scored for r in group if r is not None]),
            "reward": flat.mean().item(),
            "kl": kl.mean().item(),
            "entropy": -token_mean(samples.logprobs, samples.is_token).item(),
            "tokens": _mean([r.sequence.tokens for r in said]),
            "no_end": _mean([float(r.finish == "length") for r in said]),
            "beta": self.kl_control.beta,
            **experience.figures,
            **self.update.run(experience, self.step, columns, temperature, stop_if_asked),
        }
        self.kl_control.update(figures["kl"], len(said))
        return figures, sum(r.sequence.tokens for r in said)

    def _answers(
        self, temperature: float, stop_if_asked: Callable[[], None]
    ) -> tuple[list[Sequence[Rollout]], list[Sequence[Reward | None]], list[list[float]], int]:
        """All processes' groups of this step, their scores and rewards, and how old the weights were that spoke."""
        settings = self.settings
        chosen = self._chosen()
        places = self.world.mine(range(len(chosen)))
        prompts = [self.prompts[chosen[place]] for place in places]
        call = SampleCall(
            self.step,
            prompts,
            places,
            settings.responses,
            settings.max_new_tokens,
            temperature,
            self.seed * SEED_PRIME + self.step,
        )
        # Processes have different numbers of batches to sample: only alone can one be stopped between them.
        said = self.sampler.sample(call, stop_if_asked if self.world.size == 1 else lambda: None)
        age = self.step - said.step
        if age > settings.max_age:
            raise ValueError(f"answers of weights {age} steps old; at most {settings.max_age}")
        scored = self.score(prompts, [[r.text for r in group] for group in said.groups])
        whole = self.world.gather(list(zip(said.groups, scored, strict=True)))
        groups, rewards = [g for g, _ in whole], [r for _, r in whole]
        return groups, rewards, self.shaping.shape(groups, rewards), age

    def _chosen(self) -> list[int]:
        """The prompts of this step: pass after pass over all of them, each in an order of its own."""
        count = len(self.prompts)
        first = self.step * self.settings.prompts
        numbers = range(first, first + self.settings.prompts)
        orders = {epoch: self._order(epoch) for epoch in range(numbers[0] // count, numbers[-1] // count + 1)}
        return [orders[number // count][number % count] for number in numbers]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * SEED_PRIME + epoch)
        order: list[int] = torch.randperm(len(self.prompts), generator=generator).tolist()
        return order

    def _human_pairs(self, sampled: int) -> list[PolicyPair]:
        """So many that they are their share of all pairs; which ones goes round."""
        if not self.human_pairs:
            return []
        share = self.settings.human_share
        count = min(round(sampled * share / (1 - share)), len(self.human_pairs))
        first = self.step * count
        return [self.human_pairs[(first + i) % len(self.human_pairs)] for i in range(count)]

    def _samples(
        self,
        rows: Sequence[Completion],
        texts: Sequence[str],
        responses: int,
        scores: Tensor,
        columns: int,
        temperature: float,
    ) -> Samples:
        """Measured by policy, reference and critic, each process its share."""
        mine = self.world.mine(rows)
        now = self.learner.measured(mine, columns, temperature)
        reference = self.learner.reference_logprobs(mine, columns, temperature)
        measured = [now.logprobs, reference] + ([] if now.values is None else [now.values])
        whole = self.world.gather_rows(torch.stack(measured, 1), len(rows))  # (rows, 2 or 3, columns)
        lengths = torch.tensor([row.tokens for row in rows], device=scores.device)
        is_token = torch.arange(columns, device=scores.device) < lengths.unsqueeze(1)
        return Samples(
            rows,
            texts,
            responses,
            is_token,
            whole[:, 0],
            whole[:, 1],
            is_token.float(),
            scores,
            whole[:, 2] if len(measured) == 3 else None,
        )

    def _corrected(self, samples: Samples, said: Sequence[Rollout]) -> Samples:
        """With importance weights against the older policy that spoke."""
        behaviour = torch.zeros_like(samples.logprobs)
        for i, rollout in enumerate(said):
            behaviour[i, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
        weights = importance(samples.logprobs, behaviour, samples.is_token, self.settings.most_importance)
        return replace(samples, importance=weights)

    def _checkpoint(self) -> None:
        if self.checkpoint_dir is None or not self.world.is_first:
            return
        tensors = checkpoint.training_tensors(self.learner.modules, self.learner.optimizer)
        numbers = {"beta": self.kl_control.beta, **self.shaping.numbers()}
        texts = {"fingerprint": self.fingerprint, "moments.version": self.shaping.moments.version}
        checkpoint.save(self.checkpoint_dir, checkpoint.Checkpoint(self.step, tensors, numbers, texts))

    def _resume(self) -> None:
        self.world.check_alike(self.fingerprint)
        found = checkpoint.resume(
            self.checkpoint_dir,
            self.fingerprint,
            self.learner.modules,
            self.learner.optimizer,
            steps=self.settings.steps,
            newest=self.world.newest_checkpoint,
        )
        if found is not None:
            self.step = found.step
            self.kl_control.beta = found.numbers["beta"]
            self.shaping.restore(found.texts["moments.version"], found.numbers)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
