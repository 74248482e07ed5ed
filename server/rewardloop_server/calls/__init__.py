"""What every call shares: the errors that callers see, the checks of a request, the link to Redis."""
