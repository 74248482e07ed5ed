"""`rewardloop models prune`: deletes versions that nothing needs any more."""
