"""The command `rewardloop feedback export`: signals of the ledger as files that other programs read."""
