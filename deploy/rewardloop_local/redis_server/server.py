"""Runs the embedded Redis: a real redis-server or valkey-server, with its append-only file on."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from rewardloop_local.ports import free_port
from rewardloop_local.redis_server.binary import RedisServerError, find_redis_server
from rewardloop_local.redis_server.door import USER, RedisDoor, quoted
from rewardloop_local.redis_server.memory import memory_bound
from rewardloop_local.start_record import StartRecord

_HOST = "127.0.0.1"
_LOCK_FILE = "redis.lock"
# The rest is for models and training. Beyond its bound Redis refuses signals; without one the system would end it.
_SHARE_OF_MEMORY = 0.25


class EmbeddedRedis:
    """One redis-server behind a `RedisDoor`, or on loopback without a password, which is for tests."""

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        door: RedisDoor | None = None,
        memory_mib: int = 0,
        fsync: Literal["always", "everysec"] = "always",
        on_start: Callable[[int], None] = lambda pid: None,
    ) -> None:
        """Describe the server; `start` starts it.

        Args:
            data_dir: The directory of its data and its log.
            port: Its port if it has no door. With 0, the first start chooses a free port, which later starts keep.
            door: The only way in. With None, every user of this machine has all rights over the server.
            memory_mib: The most memory that its data may take, in MiB; 0 for a quarter of what this process may use.
            fsync: With "always", Redis syncs its file before it answers, once for everything that arrived meanwhile.
                "everysec" can lose acknowledged entries: while its background sync runs, Redis answers before it has
                written, so that a kill loses them.
            on_start: Called with its pid after each start. If it raises OSError, the server runs on, and `retry_record`
                calls it again.
        """
        self.data_dir = data_dir
        self.port = port
        self.door = door
        self._memory_mib = memory_mib
        self._fsync = fsync
        self._on_start = on_start
        self._record = StartRecord("redis-server", self._record_pid)
        self._is_port_free_to_choose = port == 0 and door is None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address for clients, with the password if it has a door."""
        return self.door.url if self.door else f"redis://{_HOST}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Its process id; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        """The file that it logs to."""
        return self.data_dir / "redis.log"

    def start(self, patience_s: float = 60.0) -> None:
        """Start it, or start it again at the same address and with the same data, and return once it answers.

        Does nothing while it runs. Raises RedisServerError if it does not answer after ``patience_s``.
        """
        if self.is_running:
            return
        binary = find_redis_server()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        attempts = 5 if self._is_port_free_to_choose else 1
        for attempt in range(attempts):
            if self._is_port_free_to_choose:
                self.port = free_port()
            self._spawn(binary)
            if self._answers_within(patience_s):
                self._is_port_free_to_choose = False
                return
            if attempt + 1 == attempts or "Address already in use" not in self._log_tail():
                self.stop()
                raise RedisServerError(f"redis-server did not start, {self.log_path}:\n{self._log_tail()}")

    def kill(self) -> None:
        """End it as ``kill -9`` does. Does nothing if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, grace_s: float = 20.0) -> None:
        """Let it write its data and end, and kill it after the grace time. Does nothing if it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def retry_record(self) -> None:
        """Call ``on_start`` again if it has failed since the last start."""
        self._record.retry()

    def _spawn(self, binary: Path) -> None:
        # The server inherits the lock, and so holds it for as long as it lives, even if this process is killed.
        lock = os.open(self.data_dir / _LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its settings go through a pipe, so that no other user can read them among its arguments. It has its log
            # as output because it says there what is wrong with its settings, before it has opened the log itself.
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    [binary, "-"],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            assert self._process.stdin is not None
            with suppress(BrokenPipeError), self._process.stdin as settings:  # it has ended already; its log says why
                settings.write("".join(f"{line}\n" for line in self._config()).encode())
        except BlockingIOError as error:
            pid = os.read(lock, 20).decode() or "unknown"
            raise RedisServerError(
                f"a redis-server (pid {pid}) already runs on {self.data_dir}: stop it first"
            ) from error
        finally:
            os.close(lock)
        self._record.started(self._process.pid)

    def _config(self) -> list[str]:
        memory = self._memory_mib * 2**20 or int(memory_bound() * _SHARE_OF_MEMORY)
        return [
            *(self.door.config_lines() if self.door else [f"bind {_HOST}", f"port {self.port}"]),
            f"dir {quoted(self.data_dir.resolve())}",
            f"logfile {quoted(self.log_path.resolve())}",
            "appendonly yes",
            f"appendfsync {self._fsync}",
            # The file then holds commands alone, which Redis and Valkey of every version read.
            "aof-use-rdb-preamble no",
            'save ""',
            f"maxmemory {memory}",
            "maxmemory-policy noeviction",
        ]

    def _record_pid(self, pid: int) -> None:
        (self.data_dir / _LOCK_FILE).write_text(str(pid))
        self._on_start(pid)

    def _answers_within(self, patience_s: float) -> bool:
        """Return False if the server ended. Raises RedisServerError if it runs and is not ready in time."""
        deadline = time.monotonic() + patience_s
        while self.is_running:
            if self.pid is not None and self._answers(self.pid):
                return True
            if time.monotonic() > deadline:
                self.stop()
                raise RedisServerError(f"redis-server is not ready after {patience_s:.0f} s, see {self.log_path}")
            time.sleep(0.01)
        return False

    def _answers(self, pid: int) -> bool:
        """Whether the process with this pid, and no other server, answers and has loaded its data."""
        asked = b"INFO server\r\nPING\r\nQUIT\r\n"
        if self.door is not None:
            asked = f"AUTH {USER} {self.door.password}\r\n".encode() + asked
        reply = b""
        try:
            with self._connected() as connection:
                connection.sendall(asked)
                while data := connection.recv(65536):
                    reply += data
        except OSError:
            return False
        return b"\r\nprocess_id:%d\r\n" % pid in reply and b"\r\n+PONG\r\n" in reply

    def _connected(self) -> socket.socket:
        if self.door is None:
            return socket.create_connection((_HOST, self.port), timeout=1.0)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(1.0)
            connection.connect(str(self.door.socket))
        except OSError:
            connection.close()
            raise
        return connection

    def _log_tail(self) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-5:])
        except FileNotFoundError:
            return "no log was written"
