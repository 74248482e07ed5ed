"""`rewardloop bench`: how a server answers under a load of one's choice."""
