"""Parses the Redis URLs that every process takes.

    redis://[user[:password]@]host[:port][/db]              one server
    unix://[user[:password]@]/path/to/socket[?db=N]         one server
    redis+sentinel://[user[:password]@]host[:port],host[:port]/service[/db]
    redis+cluster://[user[:password]@]host[:port],host[:port]

``rediss`` in place of ``redis`` means TLS. User and password are those of the data servers' ACL,
percent-encoded. TLS files are query parameters: ssl_ca_certs, ssl_certfile, ssl_keyfile, and ssl_check_hostname=no for
certificates without the host's name. The sentinels' own user is sentinel_username and sentinel_password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator

Kind: TypeAlias = Literal["server", "sentinel", "cluster"]

_SCHEMES: dict[str, tuple[Kind, bool]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("server", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_PARAMETERS = (
    *("db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"),
    *("sentinel_username", "sentinel_password"),
)
_MOST_DIGITS = 10
_PORTS = {"server": 6379, "cluster": 6379, "sentinel": 26379}


class InvalidRedisUrl(ValueError):
    """Raised for a URL that cannot be used. The text says what is wrong, and quotes nothing of the URL.

    Any part of a URL may hold a part of the password, if a character of it is not percent-encoded.
    """


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """How Redis is reached. Its repr leaves out users, too: a password in the wrong place of a URL is read as one.

    Attributes:
        kind: One server, Sentinel or Cluster.
        hosts: Host and port of the sentinels, of some nodes of the cluster, or of the one server.
        path: The Unix socket of the one server; empty for TCP.
        service: The name that the sentinels give to the master.
        db: Number of the database.
        username: User of the data servers' ACL.
        password: Password of that user.
        sentinel_username: User of the sentinels themselves.
        sentinel_password: Password of that user.
        is_tls: Connections use TLS, with the files that the remaining fields name.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    is_tls: bool = False
    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    check_hostname: bool = True

    def credentials(self) -> dict[str, Any]:
        """Return the arguments of a connection to a data server, as redis-py names them."""
        return {"username": self.username, "password": self.password, **self.tls()}

    def sentinel_credentials(self) -> dict[str, Any]:
        """Return the arguments of a connection to a sentinel."""
        return {"username": self.sentinel_username, "password": self.sentinel_password, **self.tls()}

    def tls(self) -> dict[str, Any]:
        """Return the arguments for TLS, as redis-py names them; empty without TLS."""
        if not self.is_tls:
            return {}
        return {
            "ssl": True,
            "ssl_ca_certs": self.ca_certs,
            "ssl_certfile": self.certfile,
            "ssl_keyfile": self.keyfile,
            "ssl_check_hostname": self.check_hostname,
        }


def parse_redis_url(url: str) -> RedisAddress:
    """Return the address in a URL of the forms above. Raises InvalidRedisUrl."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise InvalidRedisUrl(f"what stands before '://' is not one of {', '.join(_SCHEMES)}")
    kind, is_tls = _SCHEMES[scheme]
    userinfo_of_socket = ""
    if scheme == "unix" and not rest.startswith("/") and "@" in rest:
        userinfo_of_socket, _, rest = rest.partition("@")
        if "/" in userinfo_of_socket or not rest.startswith("/"):
            raise InvalidRedisUrl("a '/' or '@' in the user or the password must be percent-encoded")
    try:
        parts = urlsplit(f"//{rest}" if scheme != "unix" else rest)  # a list of hosts is one network location
    except ValueError:  # its text quotes the network location, with the password
        raise InvalidRedisUrl("the user, the password or a host has characters that must be percent-encoded") from None
    if scheme != "unix" and "@" in parts.path + parts.fragment:
        raise InvalidRedisUrl("a '/', '?' or '#' before the last '@' must be percent-encoded")
    userinfo, _, location = parts.netloc.rpartition("@")
    username, _, password = (userinfo or userinfo_of_socket).partition(":")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not set(given) <= set(_PARAMETERS):
        raise InvalidRedisUrl(f"unknown parameter; known are {', '.join(_PARAMETERS)}")
    path = [unquote(name) for name in parts.path.split("/") if name]
    service = ""
    if scheme == "unix":
        return RedisAddress(
            "server",
            path=unquote(parts.path),
            db=_number("db", "the database", given.get("db", "0")),
            username=unquote(username) or None,
            password=unquote(password) or None,
        )
    if kind == "sentinel":
        if not path:
            raise InvalidRedisUrl("the URL must end with /SERVICE, the name that the sentinels give to the master")
        service = path.pop(0)
    if len(path) > 1:
        raise InvalidRedisUrl("the path must be only the number of the database")
    db = _number("the path", "the database", path[0]) if path else _number("db", "the database", given.get("db", "0"))
    if kind == "cluster" and db:
        raise InvalidRedisUrl("a cluster has database 0 only")
    hosts = tuple(_host(item, _PORTS[kind]) for item in location.split(",") if item)
    if not hosts or (kind == "server" and len(hosts) > 1):
        raise InvalidRedisUrl(
            f"the URL must name one host, not {len(hosts)}" if kind == "server" else "no host is named"
        )
    return RedisAddress(
        kind,
        hosts,
        service=service,
        db=db,
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=given.get("sentinel_username"),
        sentinel_password=given.get("sentinel_password"),
        is_tls=is_tls,
        ca_certs=given.get("ssl_ca_certs"),
        certfile=given.get("ssl_certfile"),
        keyfile=given.get("ssl_keyfile"),
        check_hostname=given.get("ssl_check_hostname", "yes").lower() not in ("no", "false", "0"),
    )


def _host(item: str, default_port: int) -> tuple[str, int]:
    if item.startswith("["):
        name, _, port = item[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, _, port = item.partition(":")
    if not name:
        raise InvalidRedisUrl("a host is not of the form host:port")
    return name, _number("what follows the ':' of a host", "a port", port, 65_535) if port else default_port


def _number(where: str, what: str, text: str, most: int = 2**31) -> int:
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) > most:
        raise InvalidRedisUrl(f"{where} is not the number of {what}")
    return int(text)


def _checked(url: str) -> str:
    parse_redis_url(url)
    return url


# The type of a setting. Reading the settings fails for a URL that cannot be used.
RedisUrl = Annotated[str, AfterValidator(_checked)]
