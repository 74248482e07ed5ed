"""Makes bearer tokens for callers, and the digests of them that a server keeps."""

from __future__ import annotations

import hashlib
import secrets

# Scanners of repositories and logs find a leaked token by this prefix.
PREFIX = "rlt_"
_RANDOM_BYTES = 32


def new_token() -> str:
    """Return a new token: 256 random bits, in characters that are safe in headers, shells and URLs."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def token_digest(token: str) -> str:
    """Return the digest that a server keeps, as 64 hexadecimal digits.

    A plain hash is enough: slow and salted hashes protect secrets that can be guessed, and 256 random bits cannot be.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
