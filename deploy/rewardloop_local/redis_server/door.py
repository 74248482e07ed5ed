"""Who may reach the embedded Redis: a Unix socket in a directory of one user, a password, and no admin's commands."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from rewardloop.process.secret_files import secret_text
from rewardloop_local.redis_server.binary import RedisServerError

USER = "rewardloop"
# The system's own bound is 104 bytes on macOS and 108 on Linux, with the end marker.
_MOST_PATH_BYTES = 100
_PASSWORD_FILE = "password"
_SOCKET = "redis.sock"
# What the processes of rewardloop need; the same rights that docs/how-to/redis.md asks for.
_RIGHTS = "~rewardloop:* +@all -@admin -@dangerous +info +bgrewriteaof"


@dataclass(frozen=True, slots=True)
class RedisDoor:
    """A socket and the password of the only user.

    Attributes:
        socket: Path of the Unix socket, which the owner of its directory alone can reach.
        password: The password of `USER`.
    """

    socket: Path
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """The URL with the password. It must not be shown, and no process may have it among its arguments."""
        return f"unix://{USER}:{self.password}@{quote(str(self.socket))}?db=0"

    def config_lines(self) -> list[str]:
        """Return the lines of a redis.conf for this door: no port, and no user but `USER`."""
        digest = hashlib.sha256(self.password.encode()).hexdigest()
        return [
            "port 0",
            f"unixsocket {quoted(self.socket)}",
            "unixsocketperm 700",
            "user default off",
            f"user {USER} on #{digest} {_RIGHTS}",
        ]


def open_door(data_dir: Path) -> RedisDoor:
    """Return the door of the Redis with this data directory, which is closed to other users from now on.

    The password is made once and kept in a file of the directory.

    Raises:
        RedisServerError: If the directory, or the socket's own one, belongs to another user.
    """
    data_dir = data_dir.resolve()
    _close_to_others(data_dir)
    return RedisDoor(_socket_of(data_dir), _password(data_dir / _PASSWORD_FILE))


def door_of(data_dir: Path) -> RedisDoor | None:
    """Return the door that `open_door` made, or None if there is none. Raises OSError if it may not be read."""
    data_dir = data_dir.resolve()
    try:
        return RedisDoor(_socket_path(data_dir), secret_text(data_dir / _PASSWORD_FILE))
    except FileNotFoundError:
        return None


def quoted(value: object) -> str:
    """Return a value as one word of a redis.conf."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _socket_of(data_dir: Path) -> Path:
    socket = _socket_path(data_dir)
    if socket.parent != data_dir:
        _close_to_others(socket.parent)
    return socket


def _socket_path(data_dir: Path) -> Path:
    """In the data directory, or if its path is too long for a socket, in a directory of its own for temporary files."""
    socket = data_dir / _SOCKET
    if len(os.fsencode(socket)) <= _MOST_PATH_BYTES:
        return socket
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()).resolve() / f"rewardloop-{os.geteuid()}-{name}" / _SOCKET


def _close_to_others(directory: Path) -> None:
    """Make a directory that its owner alone can enter. Raises RedisServerError if another user has made it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise RedisServerError(f"{directory} is not a directory of this user") from None
        directory.chmod(0o700)


def _password(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        if password := secret_text(path):
            return password
        path.unlink()  # a process was killed before it had written it
        return _password(path)
    with os.fdopen(descriptor, "w") as file:
        password = secrets.token_urlsafe(32)
        file.write(password)
        file.flush()
        os.fsync(file.fileno())
    return password
