"""`rewardloop demo`: simulated users with a hidden taste, and what the loop learns from them."""
