"""The server's certificate. When its files change, they are read and checked together and serve new connections."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from rewardloop_server.doors.reload import BadFile
from rewardloop_server.observe.door_metrics import DoorMetrics


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Paths of the PEM files: the certificate chain, its private key, and the authorities of clients, if any."""

    cert: Path
    key: Path
    client_ca: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)


class ServerCertificate:
    """Gives new connections the newest good certificate. Open connections keep the one that they began with."""

    def __init__(self, files: CertificateFiles, metrics: DoorMetrics) -> None:
        """Read the files. Raises BadFile."""
        self._files = files
        self._metrics = metrics
        self._lock = threading.Lock()
        self._fresh: Any = None
        self.take_files()

    def take_files(self) -> None:
        """Put the files' present content in force. Raises BadFile, and then the old certificate stays in force."""
        configuration, expires = _load(self._files)
        with self._lock:
            self._fresh = configuration
        self._metrics.certificate_expiry.set(expires.timestamp())

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._take_fresh(), self._take_fresh, require_client_authentication=self._files.client_ca is not None
        )

    def _take_fresh(self) -> Any:
        """Return a certificate that is new since the last call, or None.

        gRPC calls this in a thread of its own before each handshake.
        """
        with self._lock:
            fresh, self._fresh = self._fresh, None
        return fresh


def _load(files: CertificateFiles) -> tuple[Any, datetime]:
    """Return the configuration for gRPC, and when the certificate expires. Raises BadFile."""
    chain_pem, key_pem = _content(files.cert), _content(files.key)
    authorities_pem = None if files.client_ca is None else _content(files.client_ca)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        certificate = x509.load_pem_x509_certificates(chain_pem)[0]
        certified = certificate.public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm):
        raise BadFile(f"{files.cert}: no PEM certificate") from None
    try:
        public = load_pem_private_key(key_pem, None).public_key().public_bytes(*form)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: the key is encrypted
        raise BadFile(f"{files.key}: no PEM private key without a passphrase") from None
    if public != certified:
        raise BadFile(f"{files.key}: not the key of the certificate in {files.cert}")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise BadFile(f"{files.cert}: expired at {certificate.not_valid_after_utc.isoformat()}")
    if authorities_pem is not None:
        try:
            x509.load_pem_x509_certificates(authorities_pem)
        except ValueError:
            raise BadFile(f"{files.client_ca}: no PEM certificate") from None
    pair = [(key_pem, chain_pem)]
    return grpc.ssl_server_certificate_configuration(pair, authorities_pem), certificate.not_valid_after_utc


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None
