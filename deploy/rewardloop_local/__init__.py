"""`rewardloop up` and `rewardloop down`: runs everything on one machine, and ends it."""
