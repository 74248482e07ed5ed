"""Redis as it is run in production, out of real processes: sentinels, a cluster, TLS with an ACL."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from rewardloop_local.ports import free_port
from rewardloop_local.redis_server import find_redis_server
from support.tools import missing, tool


@dataclass
class RedisProcess:
    """One redis-server with a configuration of its own."""

    directory: Path
    port: int
    lines: Sequence[str]
    binary: Path
    args: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "redis.conf"
        if not config.exists():  # sentinels and cluster nodes write into theirs
            fixed = [f"dir {self.directory}", "bind 127.0.0.1", f"logfile {self.directory}/redis.log", 'save ""']
            config.write_text("\n".join([*fixed, *self.lines]) + "\n")
        self.process = subprocess.Popen(
            [self.binary, config, *self.args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def answers(self) -> bool:
        """Whether it answers; it is started again if it ended, as it does while something else has one of its ports."""
        if self.process is not None and self.process.poll() is not None:
            self.start()
        with self.client() as client:
            return bool(client.ping())

    def log(self) -> str:
        """Its name and the last lines that it wrote, for the message of a test that fails."""
        log = self.directory / "redis.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else ["it wrote no log"]
        return "\n".join([self.directory.name, *lines[-25:]])


def until(
    holds: Callable[[], bool], patience_s: float = 120.0, why: Callable[[], str] = lambda: "it did not come about"
) -> None:
    """Wait until it holds; a Redis that is not there yet does not count. After ``patience_s`` fail with ``why``."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            if holds():
                return
        except redis.RedisError:
            pass  # not listening yet: the deadline decides
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


@contextmanager
def running(*processes: RedisProcess) -> Iterator[None]:
    with ExitStack() as stack:
        for process in processes:
            process.start()
            stack.callback(process.kill)
        for process in processes:
            until(process.answers, why=process.log)
        yield


@dataclass
class Sentinels:
    """A master, its replica, and three sentinels that watch them."""

    url: str
    master: RedisProcess
    replica: RedisProcess
    sentinels: Sequence[RedisProcess]

    def master_port(self) -> int:
        with self.sentinels[0].client() as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "rewardloop")[1])

    def log(self) -> str:
        """The last lines that each process wrote, for the message of a test that fails."""
        return "\n".join(process.log() for process in (self.master, self.replica, *self.sentinels))


@contextmanager
def sentinels(directory: Path) -> Iterator[Sentinels]:
    binary = find_redis_server()
    ports = [free_port() for _ in range(5)]
    durable = ["appendonly yes", "appendfsync always"]
    master = RedisProcess(directory / "master", ports[0], [f"port {ports[0]}", *durable], binary)
    following = [f"port {ports[1]}", *durable, f"replicaof 127.0.0.1 {ports[0]}"]
    replica = RedisProcess(directory / "replica", ports[1], following, binary)
    watching = [
        f"sentinel monitor rewardloop 127.0.0.1 {ports[0]} 2",
        "sentinel down-after-milliseconds rewardloop 500",
        "sentinel failover-timeout rewardloop 3000",
    ]
    watchers = [
        RedisProcess(directory / f"sentinel{i}", port, [f"port {port}", *watching], binary, ["--sentinel"])
        for i, port in enumerate(ports[2:])
    ]
    with running(master, replica):
        with master.client() as client:
            until(lambda: _is_online(client))
        with running(*watchers):
            for watcher in watchers:
                with watcher.client() as client:
                    until(lambda client=client: _knows_all(client))  # type: ignore[misc]
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports[2:])
            yield Sentinels(f"redis+sentinel://{hosts}/rewardloop/0", master, replica, watchers)


def _is_online(client: redis.Redis) -> bool:
    first = client.info("replication").get("slave0", {})
    return isinstance(first, dict) and first.get("state") == "online"


def _knows_all(client: redis.Redis) -> bool:
    (state,) = client.sentinel_masters().values()
    return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2)


@contextmanager
def cluster(directory: Path, masters: int = 3) -> Iterator[str]:
    """The URL of a cluster of ``masters`` nodes, all slots served."""
    with cluster_with_replicas(directory, masters, replicas=0) as (url, _):
        yield url


@contextmanager
def cluster_with_replicas(
    directory: Path, masters: int = 3, replicas: int = 3
) -> Iterator[tuple[str, Sequence[RedisProcess]]]:
    """The URL of a cluster whose first ``replicas`` masters have a replica each, and these replicas."""
    binary = find_redis_server()
    count = masters + replicas
    ports: list[int] = []
    while len(ports) < 2 * count:
        if (port := free_port()) not in ports:
            ports.append(port)
    buses = ports[count:]  # named, because by default a bus takes the port 10,000 higher, which may be in use
    nodes = [
        RedisProcess(
            directory / f"node{port}",
            port,
            [
                f"port {port}",
                f"cluster-port {bus}",
                "cluster-enabled yes",
                "appendonly yes",
                "cluster-node-timeout 2000",
            ],
            binary,
        )
        for port, bus in zip(ports[:count], buses, strict=True)
    ]
    with running(*nodes):
        share = 16384 // masters + 1
        for i, node in enumerate(nodes):
            with node.client() as client:
                if i < masters:
                    slots = range(i * share, min((i + 1) * share, 16384))
                    client.execute_command("CLUSTER", "ADDSLOTS", *slots)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], buses[0])
        for node in nodes:
            with node.client() as client:
                until(lambda client=client: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))  # type: ignore[misc]
        for master, replica in zip(nodes, nodes[masters:], strict=False):
            with master.client() as of_master, replica.client() as of_replica:
                name = of_master.execute_command("CLUSTER", "MYID")
                until(lambda c=of_replica, name=name: c.execute_command("CLUSTER", "REPLICATE", name) is not None)  # type: ignore[misc]
                until(lambda c=of_master: _is_online(c))  # type: ignore[misc]
        yield f"redis+cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}", nodes[masters:]


@contextmanager
def tls_with_acl(directory: Path) -> Iterator[str]:
    """The URL of a server that takes TLS only, with certificates on both sides, and one user with the keys it needs."""
    binary = _with_tls()
    openssl = tool("openssl", "openssl")
    directory.mkdir(parents=True, exist_ok=True)
    _certificates(openssl, directory)
    port = free_port()
    lines = [
        f"port 0\ntls-port {port}",
        f"tls-cert-file {directory}/server.crt\ntls-key-file {directory}/server.key",
        f"tls-ca-cert-file {directory}/ca.crt\ntls-auth-clients yes",
        "user default off",
        "user rewardloop on >s3cret/pass ~rewardloop:* +@all -@admin -@dangerous +info +ping",
    ]
    process = RedisProcess(directory / "redis", port, lines, binary)
    files = f"ssl_ca_certs={directory}/ca.crt&ssl_certfile={directory}/client.crt&ssl_keyfile={directory}/client.key"
    process.start()
    try:
        yield f"rediss://rewardloop:s3cret%2Fpass@127.0.0.1:{port}/0?{files}"
    finally:
        process.kill()


def _with_tls() -> Path:
    """A redis-server that was built with TLS, which the wheel's is not."""
    installed = [Path(directory) / "redis-server" for directory in os.get_exec_path()]
    able = [each for each in installed if os.access(each, os.X_OK) and b"tls-cert-file" in each.read_bytes()]
    if not able:
        missing("no redis-server with TLS is installed (Debian: apt-get install redis-server)")
    return able[0]


def _certificates(openssl: str, directory: Path) -> None:
    def run(*args: str) -> None:
        subprocess.run([openssl, *args], cwd=directory, check=True, capture_output=True)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=test CA")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        run("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signing)
