"""The callers' file: a TOML file of the callers' token hashes, certificate names, roles and quotas.

    [[token]]
    caller = "shop"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    roles = ["score", "feedback"]
    expires = 2027-06-01T00:00:00Z      # optional; UTC if it names no zone

    [[certificate]]                     # needs --tls-client-ca; a subject alternative name or the common name
    caller = "operators"
    name = "ops.internal"
    roles = ["admin"]

    [quota.shop]                        # optional; "*" is for each caller that has no quota of its own
    requests_per_s = 100
    tokens_per_s = 50_000
    bytes_per_s = 1_000_000
    concurrent = 64

A caller may have several tokens. Who can read a digest can make publishable tokens of it, which give feedback about one
generation: keep the file from other users. To change a token, add the new one, hand it out, then remove the old one.
"""

from __future__ import annotations

import hmac
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewardloop.formats.tokens import (
    LONGEST_LIFE_S,
    Claims,
    claims_of,
    is_publishable,
    is_signed_by,
    key_id,
    token_digest,
)
from rewardloop_server.calls.errors import ExpiredCredentials, NoCredentials, RewardloopError, WrongCredentials
from rewardloop_server.doors.quotas import Allowance, Quota
from rewardloop_server.doors.reload import BadFile
from rewardloop_server.doors.roles import Role

_EVERYBODY_ELSE = "*"
_NO_QUOTA = Quota()
_SCHEME = "bearer "
_CLOCKS_APART_S = 60.0


@dataclass(frozen=True, slots=True)
class Credential:
    """What lets a caller in.

    Attributes:
        caller: The caller's name.
        key: The digest of a token, or the name in a certificate.
        roles: What the caller may do with it.
        expires: Unix time after which it is no longer good. None if it does not expire.
        only: What a publishable token, which was made from the caller's, is good for. None for the caller's own.
    """

    caller: str
    key: str
    roles: frozenset[Role]
    expires: float | None = None
    only: Claims | None = None


# The credential of the present call. None if authentication is off, or the call is not admitted yet.
PRESENT: ContextVar[Credential | None] = ContextVar("credential", default=None)


@dataclass(frozen=True, slots=True)
class Table:
    """The content of the file as it was read once."""

    tokens: Mapping[str, Credential] = field(default_factory=dict)
    certificates: Mapping[str, Credential] = field(default_factory=dict)
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    publishers: Mapping[str, Credential] = field(default_factory=dict)  # by the key_id of publishable tokens


class Callers:
    """The table in force, and what each caller has left of its quotas."""

    def __init__(self, path: Path, allow: Callable[[str, Quota], Allowance] = Allowance) -> None:
        """Read the file at ``path``. ``allow`` makes what a caller has left of a quota. Raises BadFile."""
        self.path = path
        self._allow = allow
        self.table = read_table(path)
        self._allowances: dict[str, Allowance] = {}

    def take_file(self) -> None:
        """Put the file's present content in force. Raises BadFile, and then the old content stays in force."""
        self.table = read_table(self.path)

    def by_token(self, token: str) -> Credential | RewardloopError:
        """Return the token's credential, or why it is not good."""
        if is_publishable(token):
            return self._by_publishable(token)
        digest = token_digest(token)
        found = self.table.tokens.get(digest)
        # The time that this takes tells an attacker nothing, because nobody can choose the hash of a token to try.
        if found is None or not hmac.compare_digest(found.key, digest):
            return WrongCredentials("the token is not known here")
        return self._unless_expired(found)

    def _by_publishable(self, token: str) -> Credential | RewardloopError:
        """Return the credential of a publishable token: feedback about one generation, for its caller."""
        claims = claims_of(token)
        parent = None if claims is None else self.table.publishers.get(claims.key_id)
        if claims is None or parent is None or not is_signed_by(token, parent.key):
            return WrongCredentials("the token is not known here")
        now = time.time()
        if _is_past(parent.expires) or claims.expires <= now:
            return ExpiredCredentials(f"a publishable token of {parent.caller} has expired")
        if claims.expires > now + LONGEST_LIFE_S + _CLOCKS_APART_S:
            return WrongCredentials("a publishable token must not live for more than a day")
        return replace(parent, roles=parent.roles & {"feedback"}, expires=float(claims.expires), only=claims)

    def by_certificate(self, names: Sequence[str]) -> Credential | RewardloopError:
        """Return the credential of the first known one of a verified certificate's names, or why there is none."""
        for name in names:
            if (found := self.table.certificates.get(name)) is not None:
                return self._unless_expired(found)
        return NoCredentials("no bearer token, and no name of the client certificate is a caller's")

    def still_lets_in(self, credential: Credential) -> bool:
        """Return whether the credential is still in the file and has not expired since it let a call in."""
        known = self.table.tokens.get(credential.key) or self.table.certificates.get(credential.key)
        return known == credential and not _is_past(credential.expires)

    def allowance(self, caller: str) -> Allowance:
        """Return what the caller has left. It is kept for as long as the caller's quota stays the same."""
        quotas = self.table.quotas
        quota = quotas.get(caller) or quotas.get(_EVERYBODY_ELSE) or _NO_QUOTA
        known = self._allowances.get(caller)
        if known is None or known.quota != quota:
            known = self._allowances[caller] = self._allow(caller, quota)
        return known

    @staticmethod
    def _unless_expired(found: Credential) -> Credential | RewardloopError:
        if _is_past(found.expires):
            return ExpiredCredentials(f"the credentials of {found.caller} have expired")
        return found


def bearer_token(metadata: Sequence[tuple[str, str | bytes]] | None) -> str | None:
    """Return the bearer token in a call's metadata, or None if there is none."""
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
            return value[len(_SCHEME) :].strip()
    return None


_Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\s\x00-\x1f]+$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Access(_Entry):
    caller: _Name
    roles: frozenset[Role] = Field(min_length=1)
    expires: datetime | None = None

    def expires_at(self) -> float | None:
        if self.expires is None:
            return None
        return (self.expires if self.expires.tzinfo else self.expires.replace(tzinfo=UTC)).timestamp()


class _Token(_Access):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Certificate(_Access):
    name: _Name


class _Quota(_Entry):
    requests_per_s: float | None = Field(None, gt=0)
    tokens_per_s: float | None = Field(None, gt=0)
    bytes_per_s: float | None = Field(None, gt=0)
    concurrent: int | None = Field(None, ge=1)
    burst_s: float = Field(2.0, gt=0)


class _File(_Entry):
    token: tuple[_Token, ...] = ()
    certificate: tuple[_Certificate, ...] = ()
    quota: dict[str, _Quota] = {}


def read_table(path: Path) -> Table:
    """Read the file. Raises BadFile with a text that names fields and never their values."""
    try:
        parsed = _File.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"{path}: {error}") from None
    except ValidationError as error:
        told = error.errors(include_input=False, include_url=False)
        lines = (f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in told)
        raise BadFile(f"{path}: {'; '.join(lines)}") from None
    tokens = [Credential(each.caller, each.sha256, each.roles, each.expires_at()) for each in parsed.token]
    certificates = [Credential(each.caller, each.name, each.roles, each.expires_at()) for each in parsed.certificate]
    quotas = {name: Quota(**quota.model_dump()) for name, quota in parsed.quota.items()}
    publishers = {key_id(each.key): each for each in tokens}
    return Table(_by_key(path, tokens), _by_key(path, certificates), quotas, publishers)


def _by_key(path: Path, credentials: Sequence[Credential]) -> dict[str, Credential]:
    table: dict[str, Any] = {each.key: each for each in credentials}
    if len(table) < len(credentials):
        raise BadFile(f"{path}: two entries have the same sha256 or the same certificate name")
    return table


def _is_past(moment: float | None) -> bool:
    return moment is not None and moment <= time.time()
