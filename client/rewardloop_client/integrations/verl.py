"""Reward functions for verl, which finds them by the path of this file.

    reward.custom_reward_function.path=$(python -c 'import rewardloop_client.integrations.verl as m; print(m.__file__)')
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.server=127.0.0.1:50051

Before verl 0.9 these keys had no ``reward.`` before them. verl 0.9 takes both.
`compute_score` is for reward managers that ask for one answer at a time, `compute_score_batch` for the batch manager.
verl tells them no prompt. So the rows' ``extra_info`` must have it: under "question", or under ``prompt_key``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardloop_client._access import TLS
from rewardloop_client._sync import RewardloopClient
from rewardloop_client.integrations.grouped import Groups, Text

_TIMEOUT_S = 120.0
_PROMPT_KEY = "question"
_SERVER = "127.0.0.1:50051"


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    **settings: Any,
) -> float:
    """Return the reward of one answer. See `compute_score_batch` for ``settings``."""
    return compute_score_batch([data_source], [solution_str], [ground_truth], [extra_info], **settings)[0]


def compute_score_batch(  # noqa: PLR0913 - verl's arguments, and settings
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    server: str = _SERVER,
    model: str = "",
    prompt_key: str = _PROMPT_KEY,
    use_ground_truth: bool = False,
    pessimism: float = 0.0,
    empty_reward: float | None = None,
    token_file: str | None = None,
    ca: str | None = None,
) -> list[float]:
    """Return the rewards of a batch. Answers that follow one another to the same prompt are scored together.

    Args:
        data_sources: Not used.
        solution_strs: The answers.
        ground_truths: The right answers, used with ``use_ground_truth``.
        extra_infos: Of each row, with its prompt: a text or messages.
        server: Address of the services.
        model: Reward model or mixture; empty for "reward".
        prompt_key: Where ``extra_infos`` have the prompt.
        use_ground_truth: Pass the right answers on, for a mixture that compares with them.
        pessimism: How many times a score's uncertainty is taken from it.
        empty_reward: The reward of an empty answer; None makes it an error.
        token_file: File with the token to show.
        ca: PEM authorities of the services' certificate; turns TLS on.

    Raises:
        RewardloopError: An answer is not scored.
        ValueError: A row has no prompt, or an answer is empty.
    """
    prompts = [_prompt(info, prompt_key) for info in extra_infos]
    groups = Groups.of(prompts, solution_strs, ground_truths if use_ground_truth else None, model)
    outcomes = _client(server, token_file, ca).score_batch(groups.groups) if groups.groups else []
    return groups.rewards(outcomes, pessimism, empty_reward)


def _prompt(info: Mapping[str, Any] | None, key: str) -> Text:
    found = (info or {}).get(key)
    if found is None:
        raise ValueError(
            f"extra_info has no {key!r}, and without the prompt an answer cannot be scored: set prompt_key"
        )
    return found if isinstance(found, str) else list(found)  # verl keeps messages in arrays of numpy


@functools.lru_cache(maxsize=8)
def _client(server: str, token_file: str | None, ca: str | None) -> RewardloopClient:
    return RewardloopClient(
        server,
        timeout_s=_TIMEOUT_S,
        lane="trainer",
        tls=TLS(ca) if ca else False,
        token=Path(token_file) if token_file else None,
    )
