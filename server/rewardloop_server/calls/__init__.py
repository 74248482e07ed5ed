"""Shared by all calls: the errors that callers see, the checks of requests, the link to Redis, the fixed words."""
