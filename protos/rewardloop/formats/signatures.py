"""Signs versions and checks signatures: ed25519 over the bytes of a manifest, which names the sha256 of every file.

Keys are PEM files as ``openssl genpkey -algorithm ed25519`` makes them. The package cryptography is needed, and is
imported only if a key is given.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The file beside the manifest that holds the 64 bytes of the signature in base64.
SIGNATURE = "manifest.json.sig"

_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class UnusableKey(ValueError):
    """Raised for a file without a key of the wanted kind, and if cryptography is not installed. The text says which."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs manifests with a private key."""

    _sign: Callable[[bytes], bytes]

    @classmethod
    def from_file(cls, path: Path) -> Signer:
        """Read a private key. Raises UnusableKey."""
        ed25519, serialization = _cryptography()
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise UnusableKey(f"{path}: {error}") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise UnusableKey(f"{path}: is no ed25519 key")
        return cls(key.sign)

    def sign(self, manifest: bytes) -> bytes:
        """Return the content of the signature file."""
        return b64encode(self._sign(manifest)) + b"\n"


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Public keys. A signature by any of them counts, so that old and new key can overlap while a key is replaced."""

    _verify: Sequence[Callable[[bytes, bytes], None]]

    @classmethod
    def from_file(cls, path: Path) -> TrustedKeys:
        """Read one or more public keys. Raises UnusableKey."""
        ed25519, serialization = _cryptography()
        try:
            keys = [serialization.load_pem_public_key(pem) for pem in _PEM.findall(path.read_bytes())]
        except (OSError, ValueError) as error:
            raise UnusableKey(f"{path}: {error}") from error
        if not keys or not all(isinstance(key, ed25519.Ed25519PublicKey) for key in keys):
            raise UnusableKey(f"{path}: is not one or more public ed25519 keys in PEM")
        return cls(tuple(key.verify for key in keys))

    def have_signed(self, manifest: bytes, signature: bytes) -> bool:
        """Return whether one of the keys has signed. ``signature`` is the content of the signature file."""
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
    """Return the signer of a setting, or None if the setting is empty. Raises UnusableKey."""
    return Signer.from_file(Path(path)) if path else None


def trusted_keys(path: str) -> TrustedKeys | None:
    """Return the keys of a setting, or None if the setting is empty. Raises UnusableKey."""
    return TrustedKeys.from_file(Path(path)) if path else None


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise UnusableKey("signed versions need cryptography: pip install 'rewardloop[signing]'") from error
    return ed25519, serialization
