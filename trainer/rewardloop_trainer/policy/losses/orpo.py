"""ORPO: supervised learning of the chosen response, and a penalty on the rejected one's odds, without a reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# exp of a mean log-probability that is nearer to 0 would be 1, whose odds are infinite.
_NEAREST_TO_CERTAIN = -1e-6


def log_odds(policy: Tensor, tokens: Tensor) -> Tensor:
    """log(p / (1 - p)) with p the geometric mean of the probabilities of a response's tokens.

    Source: Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", eq. 4.

    Args:
        policy: Any shape; log-probabilities of responses, summed over tokens, in nats.
        tokens: The same shape; numbers of tokens, at least 1, end token included.

    Returns:
        The same shape.
    """
    mean = (policy / tokens).clamp(max=_NEAREST_TO_CERTAIN)
    return mean - torch.log(-torch.expm1(mean))


def orpo(policy: Tensor, tokens: Tensor, odds_weight: float) -> Tensor:
    """-log pi(y_w|x) / |y_w| - lambda log sigmoid(log_odds(y_w) - log_odds(y_l)).

    Source: Hong et al. 2024, eq. 6 and 7.

    Args:
        policy: (pairs, 2), log-probabilities of chosen and rejected, summed over tokens, in nats.
        tokens: (pairs, 2), numbers of tokens, at least 1, end token included.
        odds_weight: lambda.

    Returns:
        (pairs,), not reduced.
    """
    odds = log_odds(policy, tokens)
    return -policy[:, 0] / tokens[:, 0] - odds_weight * logsigmoid(odds[:, 0] - odds[:, 1])
