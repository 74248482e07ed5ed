"""SimPO: preference optimisation without a reference, by log-probabilities that are averaged over tokens."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def simpo(policy: Tensor, tokens: Tensor, beta: float, margin: float) -> Tensor:
    """-log sigmoid(beta (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - margin).

    Source: Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", eq. 6.

    Args:
        policy: (pairs, 2), log-probabilities of chosen and rejected, summed over tokens, in nats.
        tokens: (pairs, 2), numbers of tokens, at least 1, end token included.
        beta: Scale of the reward, which is beta times the mean log-probability of a response's tokens.
        margin: gamma, by how much the chosen response's reward should exceed the other's.

    Returns:
        (pairs,), not reduced.
    """
    reward = beta * policy / tokens
    return -logsigmoid(reward[:, 0] - reward[:, 1] - margin)
