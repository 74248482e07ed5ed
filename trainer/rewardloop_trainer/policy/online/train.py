"""The loop that every online algorithm shares: sample, score, measure, learn.

A killed run goes on from its checkpoint to the same weights, and several processes take the same steps as one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import NO_CONTROL, RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.policy.dpo_train import PolicyPair
from rewardloop_trainer.policy.losses.clipped import importance, token_mean
from rewardloop_trainer.policy.online.algorithms import OnlineTask
from rewardloop_trainer.policy.online.experience import Samples
from rewardloop_trainer.policy.online.kl_control import KlControl
from rewardloop_trainer.policy.online.learner import Learner
from rewardloop_trainer.policy.online.sampler import LocalSampler, SampleCall, Sampler
from rewardloop_trainer.policy.online.shaping import Shaping
from rewardloop_trainer.policy.online.update import SEED_PRIME, Update
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Rollout, Sampling

Score: TypeAlias = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Sequence[Sequence[Reward | None]]]
OnlineControl: TypeAlias = RunControl[StepDone, Any]


@dataclass(frozen=True, slots=True)
class OnlineOutcome:
    """``model``: the policy to save. ``history``: the figures of each step that this call ran."""

    model: Any
    history: Sequence[StepDone]


def train_online(
    model: Any,
    encoder: Encoder,
    task: OnlineTask,
    score: Score,
    control: OnlineControl = NO_CONTROL,
    *,
    seed: int = 0,
    sampler: Sampler | None = None,
) -> OnlineOutcome:
    """Train ``model`` in place; a frozen copy of it as it comes is the reference.

    With the same arguments, a checkpoint in the control's directory and the same scores, the run goes on from the
    checkpoint to the weights of an uninterrupted run, bit for bit on one kind of CPU and number of threads. If
    torch.distributed is initialised, every process makes this call; the first process's checkpoint counts.

    Args:
        model: A Hugging Face causal LM in float32.
        encoder: The model's tokenizer and text layout.
        task: The algorithm, its prompts and people's pairs.
        score: Gives the reward of each text, or None for a text without one. It may raise; the step is then repeated
            when the run goes on.
        control: Checkpoint directory and callbacks; ``save`` gets the policy as a causal LM.
        seed: The seed of the order of prompts and minibatches and of the sampled responses.
        sampler: Where responses come from; None: this process and the weights that learn.

    Returns:
        The policy and the figures of each step.

    Raises:
        ValueError: If there is no prompt, or there are too few responses to a prompt for the algorithm.
        TrainingStopped: If the control asked to stop.
        ArithmeticError: If sampled and learned probabilities disagree, or a step's gradients are not finite.
    """
    if not task.prompts:
        raise ValueError("there is no prompt to respond to")
    if task.settings.responses < (least := task.algorithm.entry.least_responses):
        raise ValueError(f"the algorithm compares responses to one prompt: it needs {least} responses or more")
    return OnlineRun(model, encoder, task, score, control, seed, sampler).to_the_end()


class OnlineRun:
    """One run: what learns, and how many steps it has taken."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        task: OnlineTask,
        score: Score,
        control: OnlineControl,
        seed: int,
        sampler: Sampler | None,
    ) -> None:
        self.world = World()
        self.prompts, self.human_pairs, self.score = task.prompts, task.human_pairs, score
        self.algorithm, self.settings, self.control, self.seed = task.algorithm, task.settings, control, seed
        of_algorithm = (type(task.algorithm).__name__, repr(task.algorithm.settings))
        about = (*of_algorithm, seed, task.settings.model_dump_json(), *task.prompts, *task.human_pairs)
        self.fingerprint = checkpoint.fingerprint_of(model, about)
        has_critic = task.algorithm.entry.has_critic
        self.learner = Learner(model, encoder.format.pad, task.settings, has_critic=has_critic)
        self.update = Update(self.learner, self.world, task.algorithm, task.settings, seed)
        self.sampler = sampler or LocalSampler(self.learner.policy, encoder)
        self.kl_control = KlControl(task.settings.beta, task.settings.kl_target, task.settings.kl_horizon)
        self.shaping = Shaping(task.settings.rewards)
        self.step = 0

    def to_the_end(self) -> OnlineOutcome:
        """Take the remaining steps and let the caller save."""
        self._resume()
        steps, history = self.settings.steps, list[StepDone]()

        def stop_if_asked() -> None:
            if self.world.largest(float(self.control.should_stop())):
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
            self.control.on_step(done)
        policy = self.learner.merged()
        if self.world.is_first:
            self.control.save(policy)
            if self.control.checkpoint_dir is not None:
                checkpoint.clear(self.control.checkpoint_dir)
        self.world.wait()
        return OnlineOutcome(policy, history)

    def _take_step(self, stop_if_asked: Callable[[], None]) -> tuple[dict[str, float], int]:
        temperature = self.settings.temperatures[self.step % len(self.settings.temperatures)]
        try:
            groups, scored, rewards, age = self._answers(temperature, stop_if_asked)
        except Exception:
            self._checkpoint()  # nothing of this step was learned yet, so the checkpoint has all steps
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
            texts = [str(i) for i in range(len(paired))]  # all different: pairs of equal texts were dropped before
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
        """The responses of this step in all processes, their scores and rewards, and the age of the weights in steps.

        Raises:
            ValueError: If the weights that sampled are older than the settings allow.
        """
        settings = self.settings
        chosen = self._chosen()
        places = self.world.mine(range(len(chosen)))
        prompts = [self.prompts[chosen[place]] for place in places]
        sampling = Sampling(
            settings.responses, settings.max_new_tokens, self.seed * SEED_PRIME + self.step, temperature
        )
        call = SampleCall(self.step, prompts, places, sampling)
        # Asking the others whether to stop needs all processes at once, but they sample different numbers of batches.
        # So only a process that is alone can stop between batches.
        said = self.sampler.sample(call, stop_if_asked if self.world.size == 1 else lambda: None)
        age = self.step - said.step
        if age > settings.max_age:
            raise ValueError(f"the responses are from weights {age} steps old; at most {settings.max_age} are allowed")
        scored = self.score(prompts, [[r.text for r in group] for group in said.groups])
        whole = self.world.gather(list(zip(said.groups, scored, strict=True)))
        groups, rewards = [g for g, _ in whole], [r for _, r in whole]
        return groups, rewards, self.shaping.shape(groups, rewards), age

    def _chosen(self) -> list[int]:
        """Indices of this step's prompts. The run passes over all prompts repeatedly, each time in another order."""
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
        """People's pairs for this step beside ``sampled`` sampled pairs, taken in turn from all of them."""
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
        """Measure rows with policy, reference and critic; each process measures its share."""
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
        """The samples with importance weights against the older policy that sampled them."""
        behaviour = torch.zeros_like(samples.logprobs)
        for i, rollout in enumerate(said):
            behaviour[i, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
        weights = importance(samples.logprobs, behaviour, samples.is_token, self.settings.most_importance)
        return replace(samples, importance=weights)

    def _checkpoint(self) -> None:
        if self.control.checkpoint_dir is None or not self.world.is_first:
            return
        tensors = checkpoint.training_tensors(self.learner.modules, self.learner.optimizer)
        numbers = {"beta": self.kl_control.beta, **self.shaping.numbers()}
        texts = {"fingerprint": self.fingerprint, "moments.version": self.shaping.moments.version}
        checkpoint.save(self.control.checkpoint_dir, checkpoint.Checkpoint(self.step, tensors, numbers, texts))

    def _resume(self) -> None:
        self.world.check_alike(self.fingerprint)
        found = checkpoint.resume(
            self.control.checkpoint_dir,
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
