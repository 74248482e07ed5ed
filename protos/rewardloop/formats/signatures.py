"""Signed versions: ed25519 over the bytes of a manifest, which names the sha256 of every file.

Keys are PEM files as ``openssl genpkey -algorithm ed25519`` makes them. Needs the package cryptography, which is
imported only where a key is given.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Beside the manifest; base64 of the 64 bytes.
SIGNATURE = "manifest.json.sig"

_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class UnusableKey(ValueError):
    """The file holds no key of the kind that is wanted, or cryptography is not installed; the text says which."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs manifests with a private key."""

    _sign: Callable[[bytes], bytes]

    @classmethod
    def from_file(cls, path: Path) -> Signer:
        """Raises UnusableKey."""
        ed25519, serialization = _cryptography()
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise UnusableKey(f"{path}: {error}") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise UnusableKey(f"{path}: is no ed25519 key")
        return cls(key.sign)

    def sign(self, manifest: bytes) -> bytes:
        """The signature file's content."""
        return b64encode(self._sign(manifest)) + b"\n"


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Public keys, any of which may have signed: while a key is replaced both are in the file."""

    _verify: Sequence[Callable[[bytes, bytes], None]]

    @classmethod
    def from_file(cls, path: Path) -> TrustedKeys:
        """Raises UnusableKey."""
        ed25519, serialization = _cryptography()
        try:
            keys = [serialization.load_pem_public_key(pem) for pem in _PEM.findall(path.read_bytes())]
        except (OSError, ValueError) as error:
            raise UnusableKey(f"{path}: {error}") from error
        if not keys or not all(isinstance(key, ed25519.Ed25519PublicKey) for key in keys):
            raise UnusableKey(f"{path}: is not one or more public ed25519 keys in PEM")
        return cls(tuple(key.verify for key in keys))

    def have_signed(self, manifest: bytes, signature: bytes) -> bool:
        """``signature``: the signature file's content."""
        from cryptography.exceptions import InvalidSignature

        try:
            raw = b64decode(signature.strip(), validate=True)
        except ValueError:
            return False
        for verify in self._verify:
            try:
                verify(raw, manifest)
            except InvalidSignature:
                continue
            return True
        return False


def signer(path: str) -> Signer | None:
    """Of a setting; None where it is empty. Raises UnusableKey."""
    return Signer.from_file(Path(path)) if path else None


def trusted_keys(path: str) -> TrustedKeys | None:
    """Of a setting; None where it is empty. Raises UnusableKey."""
    return TrustedKeys.from_file(Path(path)) if path else None


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise UnusableKey("signed versions need cryptography: pip install 'rewardloop[signing]'") from error
    return ed25519, serialization
