"""A stored version made ready to run: checked, opened, warmed."""
