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

_MOST_SESSIONS = 10_000
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
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the one that was used last is the last

    def new_key(self) -> str:
        """Return a new key, which names no session yet."""
        return secrets.token_urlsafe(_KEY_BYTES)

    def signed(self, key: str) -> str:
        """Return the key with its signature, for the cookie."""
        return f"{key}.{self._mac(b'cookie', key)}"

    def key_of(self, value: str) -> str | None:
        """Return the key in a cookie's value, or None if this process has not signed it."""
        key, _, mac = value.rpartition(".")
        is_ours = hmac.compare_digest(self._mac(b"cookie", key).encode(), mac.encode("utf-8", "replace"))
        return key if key and is_ours else None

    def form_token(self, key: str) -> str:
        """Return the token that each form of the browser with this key carries."""
        return self._mac(b"form", key)

    def is_form_token(self, key: str, token: str) -> bool:
        """Return whether a form carries the token of the browser with this key."""
        return hmac.compare_digest(self.form_token(key).encode(), token.encode("utf-8", "replace"))

    def sign_in(self, token: str, identity: Identity, person: str, annotator_id: str) -> Session:
        """Begin a session under a new key."""
        now = self._clock()
        session = Session(self.new_key(), token, identity, person, annotator_id, now, now, now)
        self._sessions[session.key] = session
        if len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def sign_out(self, key: str) -> None:
        """End the session, if there is one."""
        self._sessions.pop(key, None)

    def of(self, key: str) -> Session | None:
        """Return the session of a key and count the request as use, or None if there is none or it has ended."""
        session = self._sessions.pop(key, None)
        now = self._clock()
        if session is None or now - session.used > self._idle_s or now - session.started > _LONGEST_S:
            return None
        self._sessions[key] = used = replace(session, used=now)
        return used

    def age_of_identity_s(self, session: Session) -> float:
        """Return how long ago the services said who the token is, in seconds."""
        return self._clock() - session.identified

    def identified(self, session: Session, identity: Identity) -> Session:
        """Keep what the services say now about the token of a session."""
        renewed = replace(session, identity=identity, identified=self._clock())
        if session.key in self._sessions:
            self._sessions[session.key] = renewed
        return renewed

    def _mac(self, purpose: bytes, key: str) -> str:
        message = purpose + b":" + key.encode("utf-8", "replace")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
