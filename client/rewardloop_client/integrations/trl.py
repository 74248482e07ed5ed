"""Reward functions for TRL's online trainers, such as GRPOTrainer and RLOOTrainer.

trainer = GRPOTrainer(model, reward_funcs=[reward("127.0.0.1:50051")], train_dataset=...)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from rewardloop_client._aio import AsyncRewardloopClient
from rewardloop_client._sync import RewardloopClient
from rewardloop_client.integrations.grouped import Groups, Text

Reward: TypeAlias = Callable[..., list[float]]
AsyncReward: TypeAlias = Callable[..., Awaitable[list[float]]]

_TIMEOUT_S = 120.0


def reward(
    server: str | RewardloopClient,
    *,
    model: str = "",
    reference: str = "",
    pessimism: float = 0.0,
    empty_reward: float | None = None,
    **access: Any,
) -> Reward:
    """Return a reward function of TRL. The completions of one prompt are scored together, in one call for the batch.

    Args:
        server: Address of the services, or a client.
        model: Reward model or mixture; empty for "reward".
        reference: The column of the data set that holds the right answer, for a mixture that compares with it.
        pessimism: How many times a score's uncertainty is taken from it, against over-optimisation.
        empty_reward: The reward of an empty completion; None makes it an error.
        access: ``tls``, ``token`` and other arguments of the client, if ``server`` is an address.

    Returns:
        The function. It raises RewardloopError if a completion is not scored.
    """
    client = server if isinstance(server, RewardloopClient) else _opened(RewardloopClient, server, access)

    def rewardloop_reward(prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        groups = Groups.of(prompts, completions, columns[reference] if reference else None, model)
        outcomes = client.score_batch(groups.groups) if groups.groups else []
        return groups.rewards(outcomes, pessimism, empty_reward)

    return rewardloop_reward


def async_reward(
    server: str,
    *,
    model: str = "",
    reference: str = "",
    pessimism: float = 0.0,
    empty_reward: float | None = None,
    **access: Any,
) -> AsyncReward:
    """Return an asynchronous reward function of TRL, which runs beside others. The arguments are those of `reward`."""
    opened: list[AsyncRewardloopClient] = []  # at the first call, because a client belongs to the loop that calls it

    async def rewardloop_reward(prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        if not opened:
            opened.append(_opened(AsyncRewardloopClient, server, access))
        groups = Groups.of(prompts, completions, columns[reference] if reference else None, model)
        outcomes = await opened[0].score_batch(groups.groups) if groups.groups else []
        return groups.rewards(outcomes, pessimism, empty_reward)

    return rewardloop_reward


def _opened(kind: Any, server: str, access: dict[str, Any]) -> Any:
    return kind(server, **{"timeout_s": _TIMEOUT_S, "lane": "trainer", **access})
