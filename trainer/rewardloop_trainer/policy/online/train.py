"""The loop that every online algorithm shares: sample, score, measure, learn.

A killed run goes on from its checkpoint to the same weights, and several processes take the same steps as one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import NO_CONTROL, RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.policy.dpo_train import PolicyPair
from rewardloop_trainer.policy.losses.clipped import importance, token_mean
from rewardloop_trainer.policy.online.agreement import agreement, sampled_logprobs
from rewardloop_trainer.policy.online.algorithms import OnlineTask
from rewardloop_trainer.policy.online.collect import Collector, Score
from rewardloop_trainer.policy.online.experience import Samples
from rewardloop_trainer.policy.online.kl_control import KlControl
from rewardloop_trainer.policy.online.learner import Learner
from rewardloop_trainer.policy.online.sampler import LocalSampler, Sampler
from rewardloop_trainer.policy.online.shaping import Shaping
from rewardloop_trainer.policy.online.update import Update
from rewardloop_trainer.policy.reference import Reference
from rewardloop_trainer.policy.rollouts import Rollout

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
    reference: Reference | None = None,
) -> OnlineOutcome:
    """Train ``model`` in place.

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
        reference: The frozen policy that the KL is measured against; None: the model as it comes.

    Returns:
        The policy and the figures of each step.

    Raises:
        ValueError: If there is no prompt, or there are too few responses to a prompt for the algorithm.
        TrainingStopped: If the control asked to stop.
        SamplerDisagrees: If the sampler's probabilities are not those of the policy that learns.
        SamplerError: If the sampler gives no responses.
        ArithmeticError: If learned probabilities disagree with themselves, or a step's gradients are not finite.
    """
    if not task.prompts:
        raise ValueError("there is no prompt to respond to")
    if task.settings.responses < (least := task.algorithm.entry.least_responses):
        raise ValueError(f"the algorithm compares responses to one prompt: it needs {least} responses or more")
    return OnlineRun(model, encoder, task, score, control, seed, sampler, reference).to_the_end()


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
        reference: Reference | None,
    ) -> None:
        self.world = World()
        self.human_pairs = task.human_pairs
        self.algorithm, self.settings, self.control, self.seed = task.algorithm, task.settings, control, seed
        of_algorithm = (type(task.algorithm).__name__, repr(task.algorithm.settings))
        about = (
            *of_algorithm,
            seed,
            reference and reference.digest,
            task.settings.model_dump_json(),
            *task.prompts,
            *task.human_pairs,
        )
        self.fingerprint = checkpoint.fingerprint_of(model, about)
        has_critic = task.algorithm.entry.has_critic
        frozen = None if reference is None else reference.load()
        self.learner = Learner(model, encoder.format.pad, task.settings, has_critic=has_critic, reference=frozen)
        self.update = Update(self.learner, self.world, task.algorithm, task.settings, seed)
        self.sampler = sampler or LocalSampler(self.learner.policy, encoder)
        self.kl_control = KlControl(task.settings.beta, task.settings.kl_target, task.settings.beta_horizon)
        self.shaping = Shaping(task.settings.rewards)
        self.collector = Collector(
            task.prompts,
            self.sampler,
            score,
            self.shaping,
            self.world,
            task.settings,
            seed,
            resamples=task.algorithm.entry.resamples,
        )
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
            collected = self.collector.collect(self.step, temperature, stop_if_asked)
        except Exception:  # of whatever kind: the steps before it are kept, and it is raised again
            self._checkpoint()  # nothing of this step was learned yet, so the checkpoint has all steps
            raise
        said = collected.rollouts
        pairs = self._human_pairs(len(collected.groups))
        paired = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
        columns = max(row.tokens for row in (*(r.sequence for r in said), *paired))
        flat = torch.tensor([r for group in collected.rewards for r in group], device=self.learner.policy.device)
        samples = self._samples(
            [r.sequence for r in said], [r.text for r in said], self.settings.responses, flat, columns, temperature
        )
        samples, measured = self._against_sampler(samples, said, collected.age)
        kl = samples.sequence_kl()
        experience = self.algorithm.experience(samples, self.kl_control.beta)
        if pairs:
            verdicts = torch.tensor([1.0, 0.0], device=flat.device).repeat(len(pairs))
            texts = [str(i) for i in range(len(paired))]  # all different: pairs of equal texts were dropped before
            weights = torch.tensor([pair.weight for pair in pairs], device=flat.device).repeat_interleave(2)
            judged = self._samples(paired, texts, 2, verdicts, columns, temperature)
            judged = replace(judged, weights=weights)
            experience = experience.joined(self.algorithm.experience(judged, self.kl_control.beta))
        figures = {
            "score": _mean([r.score for r in collected.verdicts]),
            "uncertainty": _mean([r.uncertainty for r in collected.verdicts]),
            "reward": flat.mean().item(),
            "kl": kl.mean().item(),
            "entropy": -token_mean(samples.logprobs, samples.is_token).item(),
            "tokens": _mean([r.sequence.tokens for r in said]),
            "no_end": _mean([float(r.finish == "length") for r in said]),
            "beta": self.kl_control.beta,
            "batches": float(collected.batches),
            **measured,
            **experience.figures,
            **self.update.run(experience, self.step, columns, temperature, stop_if_asked),
        }
        self.kl_control.update(figures["kl"], len(said))
        return figures, sum(r.sequence.tokens for r in said)

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

    def _against_sampler(
        self, samples: Samples, said: Sequence[Rollout], age: int
    ) -> tuple[Samples, Mapping[str, float]]:
        """Compare sampler and learner.

        Returns:
            The samples with importance weights against the policy that sampled them, and the figures.

        Raises:
            SamplerDisagrees: If the two are further apart than the settings and the age of the weights explain.
        """
        settings, name = self.settings, self.sampler.name
        sampled = sampled_logprobs(said, samples.logprobs, name)
        found = agreement(sampled, samples.logprobs, samples.is_token)
        found.check(name, settings.max_sampler_kl + age * settings.max_update_kl)
        weights = importance(samples.logprobs, sampled, samples.is_token, settings.most_importance)
        capped = token_mean((weights >= settings.most_importance).float(), samples.is_token).item()
        return replace(samples, importance=weights), {**found.figures, "importance_capped": capped}

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
