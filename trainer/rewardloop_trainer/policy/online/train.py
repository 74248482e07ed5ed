"""The loop that every online algorithm shares: sample, score, measure, learn.

A killed run goes on from its checkpoint to the same weights, and several processes take the same steps as one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import structlog
import torch

from rewardloop.formats.text import Encoder
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import NO_CONTROL, RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.policy.dpo_train import PolicyPair
from rewardloop_trainer.policy.losses.clipped import token_mean
from rewardloop_trainer.policy.online.algorithms import OnlineTask
from rewardloop_trainer.policy.online.collect import Collector, Score
from rewardloop_trainer.policy.online.kl_control import KlBound, KlControl, TakenBack
from rewardloop_trainer.policy.online.learner import Learner, Measure
from rewardloop_trainer.policy.online.sampler import LocalSampler, Sampler
from rewardloop_trainer.policy.online.shaping import Shaping
from rewardloop_trainer.policy.online.update import Update
from rewardloop_trainer.policy.reference import Reference

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OnlineOutcome:
    """The result of a finished run.

    Attributes:
        model: The policy to save.
        history: The figures of each step that this call ran.
        taken_back: Why the run ended early; None if it took all its steps.
        kl: Mean KL of the policy to the reference on samples of its own, in nats per response; None without a bound,
            because then nothing is sampled after the last step.
    """

    model: Any
    history: Sequence[StepDone]
    taken_back: TakenBack | None = None
    kl: float | None = None


OnlineControl: TypeAlias = RunControl[StepDone, OnlineOutcome]


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
        control: Checkpoint directory and callbacks; ``save`` gets the outcome.
        seed: The seed of the order of prompts and minibatches and of the sampled responses.
        sampler: Where responses come from; None: this process and the weights that learn.
        reference: The frozen policy that the KL is measured against; None: the model as it comes.

    Returns:
        The policy and the figures of each step. If the KL to the reference goes above ``task.settings.max_kl``, the
        step that did it is taken back, and the run ends there.

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
        frozen = None if reference is None else reference.beside(model)
        self.learner = Learner(model, encoder.format.pad, task.settings, has_critic=has_critic, reference=frozen)
        self.update = Update(self.learner, self.world, task.algorithm, task.settings, seed)
        self.sampler = sampler or LocalSampler(self.learner.policy, encoder)
        self.measure = Measure(self.learner, self.world, task.settings, self.sampler.name)
        self.kl_control = KlControl(task.settings.beta, task.settings.kl_target, task.settings.beta_horizon)
        self.kl_bound = KlBound(task.settings.max_kl)
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
        self.control.on_start(self.step, self.settings.steps)
        steps, history, taken_back = self.settings.steps, list[StepDone](), None

        def stop_if_asked() -> None:
            if self.world.largest(float(self.control.should_stop())):
                raise TrainingStopped(f"stopped in step {self.step + 1} of {steps}")

        while self.step < steps:
            began = time.monotonic()
            found = self._take_step(stop_if_asked)
            if isinstance(found, TakenBack):
                taken_back = found
                break
            self.step += 1
            done = StepDone(self.step, steps, *found, time.monotonic() - began)
            history.append(done)
            every = self.settings.checkpoint_every_steps
            if every and self.step % every == 0 and self.step < steps:
                self._checkpoint()
            self.control.on_step(done)
        else:
            taken_back = self._check_end(stop_if_asked)
        has_bound = self.kl_bound.most is not None
        outcome = OnlineOutcome(self.learner.merged(), history, taken_back, self.kl_bound.kl if has_bound else None)
        if self.world.is_first:
            self.control.save(outcome)
            if self.control.checkpoint_dir is not None:
                checkpoint.clear(self.control.checkpoint_dir)
        self.world.wait()
        return outcome

    def _take_step(self, stop_if_asked: Callable[[], None]) -> tuple[dict[str, float], int] | TakenBack:
        """Sample, score, measure and learn.

        Returns:
            The figures of the step and the tokens that were sampled; or why nothing was learned: the step before went
            beyond the bound of the KL, and was taken back.
        """
        temperature = self._temperature
        with self._kept_if_it_fails():
            collected = self.collector.collect(self.step, temperature, stop_if_asked)
        said = collected.rollouts
        pairs = self._human_pairs(len(collected.groups))
        paired = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
        columns = max(row.tokens for row in (*(r.sequence for r in said), *paired))
        flat = torch.tensor([r for group in collected.rewards for r in group], device=self.learner.policy.device)
        samples, measured = self.measure.responses(said, collected.age, flat, columns, temperature)
        kl = samples.sequence_kl().mean().item()
        if (taken_back := self._held(kl)) is not None:
            return taken_back
        experience = self.algorithm.experience(samples, self.kl_control.beta)
        if pairs:
            verdicts = torch.tensor([1.0, 0.0], device=flat.device).repeat(len(pairs))
            texts = [str(i) for i in range(len(paired))]  # all different: pairs of equal texts were dropped before
            weights = torch.tensor([pair.weight for pair in pairs], device=flat.device).repeat_interleave(2)
            judged = self.measure.rows(paired, texts, 2, verdicts, columns, temperature)
            judged = replace(judged, weights=weights)
            experience = experience.joined(self.algorithm.experience(judged, self.kl_control.beta))
        figures = {
            "score": _mean([r.score for r in collected.verdicts]),
            "uncertainty": _mean([r.uncertainty for r in collected.verdicts]),
            "reward": flat.mean().item(),
            "kl": kl,
            **({} if self.kl_bound.most is None else {"max_kl": self.kl_bound.limit}),
            "entropy": -token_mean(samples.logprobs, samples.is_token).item(),
            "tokens": _mean([r.sequence.tokens for r in said]),
            "no_end": _mean([float(r.finish == "length") for r in said]),
            "beta": self.kl_control.beta,
            "batches": float(collected.batches),
            **measured,
            **experience.figures,
            **self.update.run(experience, self.step, columns, temperature, stop_if_asked),
        }
        self.kl_control.update(kl, len(said))
        return figures, sum(r.sequence.tokens for r in said)

    @property
    def _temperature(self) -> float:
        return self.settings.temperatures[self.step % len(self.settings.temperatures)]

    @contextmanager
    def _kept_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # of whatever kind: the steps before it are kept, and it is raised again
            self._checkpoint()  # nothing of this step was learned yet, so the checkpoint has all steps
            raise

    def _held(self, kl: float) -> TakenBack | None:
        """Take the last step back if ``kl``, measured after it, is beyond the bound, and say so."""
        if self.kl_bound.admits(kl, self.learner.policy):
            return None
        self.kl_bound.take_back(self.learner.policy)
        found = TakenBack(self.step, self.settings.steps, kl, self.kl_bound.limit, self.kl_bound.kl)
        if self.world.is_first:
            log.warning(str(found))
        return found

    def _check_end(self, stop_if_asked: Callable[[], None]) -> TakenBack | None:
        """Measure the KL after the last step, as each step measures that after the one before it."""
        if self.kl_bound.most is None:
            return None
        with self._kept_if_it_fails():
            said, age = self.collector.sampled(self.step, self._temperature, stop_if_asked)
        columns = max(rollout.sequence.tokens for rollout in said)
        scores = torch.zeros(len(said), device=self.learner.policy.device)
        samples, _ = self.measure.responses(said, age, scores, columns, self._temperature)
        return self._held(samples.sequence_kl().mean().item())

    def _human_pairs(self, sampled: int) -> list[PolicyPair]:
        """People's pairs for this step beside ``sampled`` sampled pairs, taken in turn from all of them."""
        if not self.human_pairs:
            return []
        share = self.settings.human_share
        count = min(round(sampled * share / (1 - share)), len(self.human_pairs))
        first = self.step * count
        return [self.human_pairs[(first + i) % len(self.human_pairs)] for i in range(count)]

    def _checkpoint(self) -> None:
        if self.control.checkpoint_dir is None or not self.world.is_first:
            return
        tensors = {
            **checkpoint.training_tensors(self.learner.modules, self.learner.optimizer),
            **self.kl_bound.tensors(),
        }
        numbers = {"beta": self.kl_control.beta, **self.kl_bound.numbers(), **self.shaping.numbers()}
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
            self.kl_bound.restore(found.tensors, found.numbers)
            self.shaping.restore(found.texts["moments.version"], found.numbers)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
