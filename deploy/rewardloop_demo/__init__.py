"""`rewardloop demo`: lets simulated users with a hidden taste teach the loop, and shows what it learns."""
