"""What learns in a run, with its optimizer, and what measures a step's rows under it.

The policy's weights or adapters learn, and PPO's value function if there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rewardloop_trainer.data.completions import Completion, forward, from_start, padded
from rewardloop_trainer.data.token_batches import by_length
from rewardloop_trainer.learning.lora_layers import add_adapters, has_adapters, merge_adapters, without_adapters
from rewardloop_trainer.learning.optimizer import adamw
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.policy.losses.clipped import importance, token_mean
from rewardloop_trainer.policy.online.agreement import agreement, sampled_logprobs
from rewardloop_trainer.policy.online.experience import Now, Samples
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rollouts import Rollout


class Critic(nn.Module):
    """The return that is still expected before each token.

    A linear head, initialised to 0, on the last hidden states of the policy or of a trunk of its own.
    """

    def __init__(self, width: int, trunk: Any | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values (rows, columns) of hidden states (rows, columns, width), in float32 whatever the trunk's type is."""
        values: Tensor = self.head(states.float()).squeeze(-1)
        return values

    def states(self, rows: Sequence[Completion], pad_id: int) -> Tensor:
        """Hidden states (rows, columns, width) of its own trunk, aligned as those of `completions.forward`."""
        assert self.trunk is not None
        ids, first, _ = padded(rows, pad_id, self.head.weight.device)
        states: Tensor = self.trunk(input_ids=ids, use_cache=False).last_hidden_state[:, first:-1]
        return states


class Learner:
    """A causal LM that learns, and a frozen reference: another one, or the same model as it came."""

    def __init__(
        self, model: Any, pad_id: int, settings: OnlineSettings, *, has_critic: bool, reference: Any | None = None
    ) -> None:
        """Set up the optimizer.

        Args:
            model: A causal LM; it is trained in place. With adapters, these alone learn.
            pad_id: Token id of padding.
            settings: The settings of the loop.
            has_critic: Whether a value function learns beside the policy.
            reference: A causal LM with the model's vocabulary; None: the model as it comes.
        """
        # Without dropout, here and in the copies, the probability ratio is exactly 1 before an update.
        model.eval()
        self._pad = pad_id
        self._budget = settings.micro_batch_tokens
        self._reference: Any = None if reference is None else reference.eval().requires_grad_(False)
        separate = has_critic and settings.critic.trunk == "separate"
        trunk = copy.deepcopy(model.base_model) if separate else None
        self.policy = model
        if settings.weights == "lora" and not has_adapters(model):
            add_adapters(model, settings.lora)
        self._merges = settings.weights == "lora" and all(p.dtype == torch.float32 for p in model.parameters())
        if self._reference is None and not has_adapters(model):
            self._reference = copy.deepcopy(model).requires_grad_(False)
        self.critic = Critic(model.config.get_text_config().hidden_size, trunk).to(model.device) if has_critic else None
        modules: dict[str, nn.Module] = {"policy": self.policy}
        if self.critic is not None:
            modules["critic"] = self.critic
        self.modules = nn.ModuleDict(modules)
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        rate = settings.rate_for(learning, are_adapters=has_adapters(model))
        groups = [self._group(self.policy, rate, settings.weight_decay)]
        if self.critic is not None:
            groups.append(self._group(self.critic.head, settings.critic.learning_rate, 0.0))
            if trunk is not None:
                groups.append(self._group(trunk, rate, settings.weight_decay))
        self.optimizer = adamw(groups, betas=(0.9, 0.95))
        self.parameters = [p for group in groups for p in group["params"]]

    @staticmethod
    def _group(module: Any, rate: float, decay: float) -> dict[str, Any]:
        parameters = [p for p in module.parameters() if p.requires_grad]
        return {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}

    def set_rates(self, scale: float, *, critic_alone: bool) -> None:
        """Multiply each learning rate by ``scale``; the policy's is 0 while the critic learns alone."""
        for i, group in enumerate(self.optimizer.param_groups):
            group["lr"] = 0.0 if critic_alone and i == 0 else group["base_lr"] * scale

    def now(self, rows: Sequence[Completion], columns: int, temperature: float) -> Now:
        """Run one micro-batch with gradient.

        Args:
            rows: Token sequences with their prompts.
            columns: Columns of the result, at least as many as the longest response has tokens.
            temperature: What the logits are divided by.

        Returns:
            Log-probabilities and values (rows, columns); each response starts in column 0.
        """
        shares = self.critic is not None and self.critic.trunk is None
        logprobs, is_token, states = forward(self.policy, rows, self._pad, temperature, with_states=shares)
        values = None
        if self.critic is not None:
            if states is None:
                states = self.critic.states(rows, self._pad)
            values = from_start(self.critic(states), is_token, columns)
        return Now(from_start(logprobs, is_token, columns), values)

    @torch.no_grad()
    def measured(self, rows: Sequence[Completion], columns: int, temperature: float) -> Now:
        """As `now`, for any number of rows and without gradient."""
        logprobs = torch.zeros(len(rows), columns, device=self.policy.device)
        values = torch.zeros_like(logprobs) if self.critic is not None else None
        for places in by_length([len(row.ids) for row in rows], self._budget):
            part = self.now([rows[i] for i in places], columns, temperature)
            logprobs[places] = part.logprobs
            if values is not None and part.values is not None:
                values[places] = part.values
        return Now(logprobs, values)

    @torch.no_grad()
    def reference_logprobs(self, rows: Sequence[Completion], columns: int, temperature: float) -> Tensor:
        """Log-probabilities (rows, columns) under the reference, in nats."""
        logprobs = torch.zeros(len(rows), columns, device=self.policy.device)
        with self._as_it_came() as model:
            for places in by_length([len(row.ids) for row in rows], self._budget):
                found, is_token, _ = forward(model, [rows[i] for i in places], self._pad, temperature)
                logprobs[places] = from_start(found, is_token, columns)
        return logprobs

    @contextmanager
    def _as_it_came(self) -> Iterator[Any]:
        if self._reference is not None:
            yield self._reference
        else:
            with without_adapters(self.policy):
                yield self.policy

    def merged(self) -> Any:
        """The causal LM to save, with the adapters that `OnlineSettings.weights` asked for merged into its weights."""
        if self._merges:
            merge_adapters(self.policy)
        return self.policy


@dataclass(frozen=True, slots=True)
class Measure:
    """What measures the rows of a run. ``sampler`` is the sampler's name, for messages."""

    learner: Learner
    world: World
    settings: OnlineSettings
    sampler: str

    def rows(
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

    def responses(
        self, said: Sequence[Rollout], age: int, scores: Tensor, columns: int, temperature: float
    ) -> tuple[Samples, Mapping[str, float]]:
        """Measure sampled responses, and compare sampler and learner.

        Args:
            said: The responses of all processes; those to one prompt are next to each other.
            age: How many steps older than the learning policy the weights were that sampled.
            scores: (responses,), the reward of each.
            columns: Columns of the tensors, at least as many as the longest response has tokens.
            temperature: What the logits are divided by.

        Returns:
            The samples with importance weights against the policy that sampled them, and the figures.

        Raises:
            SamplerDisagrees: If the two are further apart than the settings and the age of the weights explain.
        """
        settings, name = self.settings, self.sampler
        rows, texts = [r.sequence for r in said], [r.text for r in said]
        samples = self.rows(rows, texts, settings.responses, scores, columns, temperature)
        sampled = sampled_logprobs(said, samples.logprobs, name)
        found = agreement(sampled, samples.logprobs, samples.is_token)
        found.check(name, settings.max_sampler_kl + age * settings.max_update_kl)
        weights = importance(samples.logprobs, sampled, samples.is_token, settings.most_importance)
        capped = token_mean((weights >= settings.most_importance).float(), samples.is_token).item()
        return replace(samples, importance=weights), {**found.figures, "importance_capped": capped}
