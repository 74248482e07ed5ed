"""`rewardloop backup` and `rewardloop restore`: everything that a deployment keeps, as one whole."""
