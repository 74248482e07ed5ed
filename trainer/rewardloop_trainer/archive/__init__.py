"""The feedback stream's way into the ledger, by the one trainer that leads."""
