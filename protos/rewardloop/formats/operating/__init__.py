"""What the trainer publishes for operators, and what they may do with it: dead letters."""
