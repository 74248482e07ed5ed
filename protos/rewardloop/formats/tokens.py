"""Bearer tokens as callers carry them and as a server keeps them."""

from __future__ import annotations

import hashlib
import secrets

# The prefix lets scanners of repositories and logs find a token that leaked.
PREFIX = "rlt_"
_RANDOM_BYTES = 32


def new_token() -> str:
    """256 random bits, safe in headers, shells and URLs."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def token_digest(token: str) -> str:
    """What a server keeps: 64 hexadecimal digits.

    A plain hash is enough: slow, salted ones protect secrets that can be guessed, and 256 random bits cannot.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
