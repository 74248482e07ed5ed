"""Makes bearer tokens for callers, and the digests of them that a server keeps.

A page may hold a publishable token, because it gives feedback about one generation alone, and not for long. A backend
makes one from its own token without asking anybody, and a server checks the signature by the digest that it keeps. So
it ends with the token that it was made from. Its form is ``rlp_<claims>.<signature>``, both in base64url: the claims
are JSON, and the signature is HMAC-SHA256 under a key that is derived from the digest.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

# Scanners of repositories and logs find a leaked token by this prefix.
PREFIX = "rlt_"
_RANDOM_BYTES = 32
PUBLISHABLE_PREFIX = "rlp_"
LONGEST_LIFE_S = 24 * 3600
_MOST_CHARACTERS = 2048
_SIGNING = b"rewardloop publishable token 1"
_NAMING = b"rewardloop publishable key id 1"


def new_token() -> str:
    """Return a new token: 256 random bits, in characters that are safe in headers, shells and URLs."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def token_digest(token: str) -> str:
    """Return the digest that a server keeps, as 64 hexadecimal digits.

    A plain hash is enough: slow and salted hashes protect secrets that can be guessed, and 256 random bits cannot be.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True)
class Claims:
    """What a publishable token says of itself. Nothing of it counts before `is_signed_by` is True.

    Attributes:
        key_id: Names the token that it was made from, and does not give its digest away.
        generation_id: The generation about which it gives feedback.
        annotator_id: Who gives it; empty if that is not said.
        expires: Unix time in seconds after which it is no longer good.
    """

    key_id: str
    generation_id: str
    annotator_id: str
    expires: int


def is_publishable(token: str) -> bool:
    """Return whether a token has the form of a publishable one."""
    return token.startswith(PUBLISHABLE_PREFIX)


def make_publishable(token: str, generation_id: str, annotator_id: str, expires: float) -> str:
    """Return a publishable token that is made from ``token``.

    Raises:
        ValueError: There is no generation, or ``token`` is itself publishable.
    """
    if not generation_id or not token or is_publishable(token):
        raise ValueError("a publishable token needs a generation, and a token of a backend to be made from")
    digest = token_digest(token)
    claims = {"k": key_id(digest), "g": generation_id, "a": annotator_id, "e": math.ceil(expires)}
    body = _encoded(json.dumps(claims, separators=(",", ":")).encode())
    return f"{PUBLISHABLE_PREFIX}{body}.{_encoded(_signature(digest, body))}"


def claims_of(token: str) -> Claims | None:
    """Return what a publishable token claims, or None if it is none."""
    body, point, _ = token.removeprefix(PUBLISHABLE_PREFIX).partition(".")
    if not is_publishable(token) or not point or len(token) > _MOST_CHARACTERS:
        return None
    try:
        found = json.loads(_decoded(body))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != {"k", "g", "a", "e"}:
        return None
    claims = Claims(found["k"], found["g"], found["a"], found["e"])
    texts = (claims.key_id, claims.generation_id, claims.annotator_id)
    is_whole = all(isinstance(text, str) for text in texts) and type(claims.expires) is int
    return claims if is_whole and claims.generation_id else None


def is_signed_by(token: str, digest: str) -> bool:
    """Return whether a publishable token was made from the token with this digest."""
    body, _, tag = token.removeprefix(PUBLISHABLE_PREFIX).partition(".")
    return hmac.compare_digest(_encoded(_signature(digest, body)).encode(), tag.encode("utf-8", "replace"))


def key_id(digest: str) -> str:
    """Return the name of a token's digest in the tokens that are made from it."""
    return hmac.new(bytes.fromhex(digest), _NAMING, hashlib.sha256).hexdigest()[:16]


def _signature(digest: str, body: str) -> bytes:
    key = hmac.new(bytes.fromhex(digest), _SIGNING, hashlib.sha256).digest()
    return hmac.new(key, body.encode("utf-8", "replace"), hashlib.sha256).digest()


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
