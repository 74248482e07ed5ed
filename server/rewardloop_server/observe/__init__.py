"""The metrics of the serving processes, and what is polled for them."""
