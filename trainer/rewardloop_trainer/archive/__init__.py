"""How the trainer that leads moves signals from the feedback stream into the ledger."""
