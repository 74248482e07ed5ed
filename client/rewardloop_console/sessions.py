"""Who has signed in. A session lives in this process's memory, and a browser holds its signed key in a cookie.

A browser that has not signed in holds a key of the same form that names no session. It binds the sign-in form to the
browser. Signing in makes a new key, so that a key that somebody planted before is worth nothing afterwards.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from rewardloop_client import Identity

# Of people with a token, of browsers without one, and of one person with one token.
_MOST_SESSIONS = 10_000
_MOST_OF_ONE = 100
_LONGEST_S = 24 * 3600.0
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who has signed in.

    Attributes:
        key: Names the session; secret.
        token: The bearer token that calls of this person show to the services; empty if they ask for none.
        identity: Who the token is to the services.
        person: The name that the console shows.
        annotator_id: The opaque id under which this person's answers are recorded.
        started: When the person signed in, on the clock of the sessions.
        used: When the last request came.
        identified: When the services last said who the token is.
    """

    key: str
    token: str
    identity: Identity
    person: str
    annotator_id: str
    started: float
    used: float
    identified: float


class Sessions:
    """The sessions of this process.

    Args:
        idle_s: Seconds without a request after which a session ends.
        secret: Signs keys; by default a new one, because sessions end with the process anyway.
        clock: Seconds that never go back.
    """

    def __init__(self, idle_s: float, secret: bytes = b"", clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s = idle_s
        self._secret = secret or secrets.token_bytes(32)
        self._clock = clock
        # The one that was used last is the last. Each makes room for its own new ones only.
        self._signed_in = _Shelf()
        self._open = _Shelf()  # of browsers without a token that have come back with their cookie
        self._new = _Shelf()  # and of those that have not, which anybody can make without end

    def new_key(self) -> str:
        """Return a new key, which names no session yet."""
        return secrets.token_urlsafe(_KEY_BYTES)

    def signed(self, key: str) -> str:
        """Return the key with its signature, for the cookie."""
        return f"{key}.{self.mac(b'cookie', key)}"

    def key_of(self, value: str) -> str | None:
        """Return the key in a cookie's value, or None if this process has not signed it."""
        key, _, mac = value.rpartition(".")
        is_ours = hmac.compare_digest(self.mac(b"cookie", key).encode(), mac.encode("utf-8", "replace"))
        return key if key and is_ours else None

    def form_token(self, key: str) -> str:
        """Return the token that each form of the browser with this key carries."""
        return self.mac(b"form", key)

    def is_form_token(self, key: str, token: str) -> bool:
        """Return whether a form carries the token of the browser with this key."""
        return hmac.compare_digest(self.form_token(key).encode(), token.encode("utf-8", "replace"))

    def sign_in(self, token: str, identity: Identity, person: str, annotator_id: str) -> Session:
        """Begin a session under a new key."""
        now = self._clock()
        session = Session(self.new_key(), token, identity, person, annotator_id, now, now, now)
        if token:
            theirs = [each.key for each in self._signed_in.values() if _is_of_same(each, session)]
            for key in theirs[: max(0, len(theirs) + 1 - _MOST_OF_ONE)]:
                del self._signed_in[key]
        (self._signed_in if token else self._new).put(session)
        return session

    def sign_out(self, key: str) -> None:
        """End the session, if there is one."""
        self._taken(key)

    def of(self, key: str) -> Session | None:
        """Return the session of a key and count the request as use, or None if there is none or it has ended."""
        session = self._taken(key)
        now = self._clock()
        if session is None or now - session.used > self._idle_s or now - session.started > _LONGEST_S:
            return None
        used = replace(session, used=now)
        (self._signed_in if session.token else self._open).put(used)
        return used

    def age_of_identity_s(self, session: Session) -> float:
        """Return how long ago the services said who the token is, in seconds."""
        return self._clock() - session.identified

    def identified(self, session: Session, identity: Identity) -> Session:
        """Keep what the services say now about the token of a session."""
        renewed = replace(session, identity=identity, identified=self._clock())
        for shelf in (self._signed_in, self._open, self._new):
            if session.key in shelf:
                shelf[session.key] = renewed
        return renewed

    def mac(self, purpose: bytes, text: str) -> str:
        """Return what only this process can make of a text, as 64 hexadecimal digits."""
        message = purpose + b":" + text.encode("utf-8", "replace")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    def _taken(self, key: str) -> Session | None:
        """Remove a session, and return it."""
        found = (shelf.pop(key, None) for shelf in (self._signed_in, self._open, self._new))
        return next((session for session in found if session is not None), None)


class _Shelf(OrderedDict[str, Session]):
    """Sessions by key, of which the last ones are kept."""

    def put(self, session: Session) -> None:
        """Add a session as the last one."""
        self[session.key] = session
        if len(self) > _MOST_SESSIONS:
            self.popitem(last=False)


def _is_of_same(one: Session, other: Session) -> bool:
    return (one.token, one.annotator_id) == (other.token, other.annotator_id)
