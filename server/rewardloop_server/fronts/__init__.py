"""Several processes of `rewardloop serve`: the one that starts the others, the engine's, and the fronts."""
