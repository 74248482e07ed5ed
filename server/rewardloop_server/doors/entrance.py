"""Builds a process's door and its server from the settings, and opens the port."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import grpc
import structlog
from prometheus_client import CollectorRegistry

from rewardloop_server.calls.vocabulary import ReloadedFile
from rewardloop_server.doors.audit import AuditLog
from rewardloop_server.doors.callers import Callers
from rewardloop_server.doors.door import Door
from rewardloop_server.doors.listen import channel_options, is_local, refusal
from rewardloop_server.doors.open_calls import OpenLimits
from rewardloop_server.doors.own_user import OwnUser
from rewardloop_server.doors.quotas import Allowance, Quota
from rewardloop_server.doors.reload import BadFile, Fingerprint, fingerprint, reload_when_changed
from rewardloop_server.doors.settings import DoorSettings
from rewardloop_server.doors.socket_file import claim
from rewardloop_server.observe.door_metrics import DoorMetrics

log = structlog.get_logger()


class Entrance:
    """The door of a process that listens.

    Raises SystemExit if a file of the door cannot be used, or if the process must not listen with these settings. The
    text says what to do about it.

    Args:
        settings: Its bounds and files.
        registry: Where its metrics are registered.
        prog: The command's name in messages.
        allow: Makes what a caller has left of a quota.
        shares_port: Other processes listen on the same port.
    """

    def __init__(
        self,
        settings: DoorSettings,
        registry: CollectorRegistry,
        prog: str,
        *,
        allow: Callable[[str, Quota], Allowance] = Allowance,
        shares_port: bool = False,
    ) -> None:
        self._settings = settings
        self._allow = allow
        self._shares_port = shares_port
        self._prog = prog
        self._metrics = DoorMetrics(registry)
        self._upkeep: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._credentials: grpc.ServerCredentials | None = None
        self._claim: int | None = None  # held while the process listens on a Unix socket
        try:
            callers = self._callers()
            self._read_certificate()
        except BadFile as error:
            raise SystemExit(f"{prog}: {error}") from error
        open_limits = OpenLimits(
            settings.open_calls_per_connection, settings.open_calls_per_address, settings.open_calls
        )
        self.door = Door(callers, AuditLog(settings.audit_file, self._metrics), self._metrics, open_limits)

    def server(self, interceptors: Sequence[Any], max_message_bytes: int) -> grpc.aio.Server:
        """Return a server within the settings' bounds, which does not listen yet."""
        return grpc.aio.server(
            interceptors=list(interceptors),
            options=channel_options(self._settings, max_message_bytes, shares_port=self._shares_port),
            maximum_concurrent_rpcs=self._settings.max_rpcs,
        )

    def open(self, server: grpc.aio.Server, address: str) -> None:
        """Make the server listen on the address. Raises SystemExit."""
        if (why := refusal(address, self._settings)) is not None:
            raise SystemExit(f"{self._prog}: {why}")
        try:
            self._claim = claim(address)
        except OSError as error:
            raise SystemExit(f"{self._prog}: cannot listen on {address}: {error}") from error
        try:
            if self._credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._credentials)
        except RuntimeError:  # gRPC raises since 1.60; before, it returned port 0
            port = 0
        if port == 0:
            raise SystemExit(f"{self._prog}: cannot listen on {address}")
        if self._settings.own_user and not address.startswith("unix"):
            self.door.own_user = OwnUser(port)
        if not is_local(address) and self._settings.callers is None and self._settings.tls_client_ca is None:
            log.warning("without --callers anybody who reaches this address may call everything", address=address)

    def upkeep(self) -> list[Coroutine[Any, Any, None]]:
        """Return the work that must run beside the server: it reads changed files again."""
        return [begin() for begin in self._upkeep]

    def _callers(self) -> Callers | None:
        path = self._settings.callers
        if path is None:
            return None
        seen = fingerprint([path])
        callers = Callers(path, self._allow)
        if callers.table.certificates and self._settings.tls_client_ca is None:
            raise BadFile(f"{path} names client certificates, which need --tls-client-ca")
        self._follow("callers", (path,), callers.take_file, seen)
        return callers

    def _read_certificate(self) -> None:
        cert, key = self._settings.tls_cert, self._settings.tls_key
        if cert is None or key is None:
            return
        # Imported here, because a process without TLS need not load it.
        from rewardloop_server.doors.certificates import CertificateFiles, ServerCertificate

        files = CertificateFiles(cert, key, self._settings.tls_client_ca)
        seen = fingerprint(files.paths)
        certificate = ServerCertificate(files, self._metrics)
        self._credentials = certificate.credentials()
        self._follow("certificate", files.paths, certificate.take_files, seen)

    def _follow(self, what: ReloadedFile, paths: Sequence[Path], take: Callable[[], None], seen: Fingerprint) -> None:
        self._upkeep.append(
            lambda: reload_when_changed(what, paths, take, self._metrics, self._settings.reload_s, seen)
        )
