"""Suites of prompts that a policy must answer safely, and attacks that look for more of them."""
