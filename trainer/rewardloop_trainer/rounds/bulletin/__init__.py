"""What operators see of the trainer: a board that rounds write on, and its publication in Redis."""
