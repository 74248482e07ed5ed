"""What operators see of the loop, and what they decide about dead letters and people."""
