"""What operators may ask, and decide about dead letters and people."""
