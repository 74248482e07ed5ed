"""Carries out a Dockerfile's steps without a container engine: each stage in a chroot, RUN by RUN.

Then starts the image's program as its user on a read-only root, asks its HEALTHCHECK, and ends it with its STOPSIGNAL.

    python tests/support/container_steps.py server
    python tests/support/container_steps.py trainer --packages SITE_PACKAGES

The base image is this machine's own system: `FROM` cannot be proven so. With --packages, the packages of the extras
are those of a directory instead of what pip would download, torch above all. Needs root and Linux's mount namespaces.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from rewardloop.formats.store import ModelStore
from rewardloop_local.ports import free_port
from rewardloop_local.redis_server import EmbeddedRedis
from support.deploy_files import DEPLOY, REPOSITORY, Instruction, instructions, last_stage
from support.reward_graphs import publish_sum_version

_INSIDE = "REWARDLOOP_CONTAINER_STEPS"
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib64", "/usr", "/dev", "/proc", sys.base_prefix)
_USER = 10001
_CHROOT = shutil.which("chroot") or "chroot"  # by its path: the environment inside has another PATH


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", choices=("server", "trainer"))
    parser.add_argument("--packages", type=Path, help="site-packages to use instead of downloads")
    options = parser.parse_args()
    if _INSIDE not in os.environ:
        with tempfile.TemporaryDirectory(prefix="rewardloop-steps-", dir="/var/tmp") as work:
            # Mounts end with the namespace, so that nothing is mounted any more when the directory is removed.
            inside = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
            return subprocess.run(inside, env={**os.environ, _INSIDE: work}).returncode
    work = Path(os.environ[_INSIDE])
    dockerfile = DEPLOY / f"docker/{options.image}.Dockerfile"
    root = build(dockerfile, work, options.packages)
    environment = {key: value for each in last_stage(dockerfile, "ENV") for key, value in _pairs(each)}
    with _redis(work / "redis") as redis_url:
        for command in ("serve",) if options.image == "server" else ("policy-worker", "train"):
            try_out(dockerfile, root, command, environment, redis_url, work)
    return 0


def build(dockerfile: Path, work: Path, packages: Path | None) -> Path:
    """The root of the image that is kept."""
    roots: dict[str, Path] = {}
    arguments: dict[str, str] = {}
    for step in instructions(dockerfile):
        if step.name == "FROM":
            root = _new_root(work / f"stage{step.stage}", packages)
            roots[step.text.partition(" AS ")[2]] = root
            cwd, environment = "/", {"PATH": f"{sys.base_prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"}
        elif step.name == "ARG":
            key, _, value = step.text.partition("=")
            arguments[key] = value
        elif step.name == "WORKDIR":
            cwd = step.text
            (root / cwd.strip("/")).mkdir(parents=True)
        elif step.name == "COPY":
            _copy(step, roots, root, cwd)
        elif step.name == "RUN":
            text = step.text
            if packages is not None and " install " in text and "pip" in text:
                text = _offline(text)
            print(f"{dockerfile.name} [{step.stage}] RUN {text}", flush=True)
            ran = [_CHROOT, str(root), "/bin/sh", "-ec", f"cd {cwd}; {text}"]
            passed = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
            subprocess.run(ran, check=True, env={**passed, **environment, **arguments})
    return root


def _offline(text: str) -> str:
    """The same environment and wheel, with the packages of a directory for those that pip would download."""
    made = text.split(" && ")[0]
    here = 'echo /packages > "$(echo /opt/rewardloop/lib/python3*/site-packages)/packages.pth"'
    return f"{made} && /opt/rewardloop/bin/pip install -q --no-deps /wheels/*.whl && {here}"


def _new_root(root: Path, packages: Path | None) -> Path:
    if packages is not None:
        (root / "packages").mkdir(parents=True)
        _mount("--bind", packages, root / "packages")
    for path in _SYSTEM:
        target = root / path.strip("/")
        if Path(path).is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.readlink(path))
        elif Path(path).is_dir() and not target.exists():
            target.mkdir(parents=True)
            _mount("--rbind" if path in ("/dev", "/proc") else "--bind", path, target)
    shutil.copytree("/etc", root / "etc", symlinks=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    return root


def _copy(step: Instruction, roots: dict[str, Path], root: Path, cwd: str) -> None:
    words = step.text.split()
    source_root = roots[words.pop(0).partition("=")[2]] if words[0].startswith("--from=") else REPOSITORY
    *sources, last = words
    for source in sources:
        path = source_root / source.lstrip("/")
        target = root / os.path.join(cwd, last).strip("/")
        if path.is_dir():
            ignored = shutil.ignore_patterns("node_modules", "*.pyc") if source_root == REPOSITORY else None
            shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        else:
            target = target / path.name if last.endswith("/") else target
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def try_out(
    dockerfile: Path, root: Path, command: str, environment: dict[str, str], redis_url: str, work: Path
) -> None:
    """Start ``rewardloop COMMAND`` as the image's user on its read-only root, until its health check is content."""
    store = work / "store"
    if not store.exists():
        publish_sum_version(ModelStore(store))
    _mount("--bind", str(store), root / "store")
    _mount("--rbind", str(root), root)
    _mount("-o", "remount,bind,ro", root)
    _mount("-t", "tmpfs", "tmpfs", root / "tmp")
    writable = root / "work"
    if writable.is_dir():
        _mount("-t", "tmpfs", "-o", f"uid={_USER},gid={_USER}", "tmpfs", writable)
    port, metrics_port = free_port(), free_port()
    argv = [command, "--redis-url", redis_url, "--metrics-port", str(metrics_port)]
    argv += [] if command == "train" else ["--listen", f"127.0.0.1:{port}"]
    argv += ["--work-dir", "/state/trainer", "--archive", "/state/ledger"] if command == "train" else []
    (entry,), (stop,) = last_stage(dockerfile, "ENTRYPOINT"), last_stage(dockerfile, "STOPSIGNAL")
    inside = [_CHROOT, f"--userspec={_USER}:{_USER}", str(root)]
    environment = {**environment, "PATH": "/opt/rewardloop/bin:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    for path in ("/opt/rewardloop/x", "/x"):
        for user in (inside, [_CHROOT, str(root)]):
            tried = subprocess.run([*user, "touch", path], env=environment, capture_output=True, text=True)
            assert tried.returncode != 0, path
    assert "Read-only file system" in tried.stderr
    process = subprocess.Popen([*inside, *entry.words, *argv], env=environment)
    try:
        health = _health(dockerfile, command, port, metrics_port)
        started = time.monotonic()
        while (asked := subprocess.run([*inside, *health], env=environment, capture_output=True, text=True)).returncode:
            assert process.poll() is None, f"it ended with {process.returncode}"
            assert time.monotonic() - started < 180, asked.stdout
            time.sleep(0.5)
        uids = re.search(r"^Uid:\s+(.*)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        assert uids is not None
        assert set(uids.group(1).split()) == {str(_USER)}
        process.send_signal(signal.Signals[stop.text])
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    seconds = time.monotonic() - started
    print(
        f"{dockerfile.name}: {command} as {_USER}, read-only root: {asked.stdout.strip()}, ended well ({seconds:.0f} s)"
    )
    for path in (root / "tmp", *([writable] if writable.is_dir() else []), root, root / "store"):
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def _health(dockerfile: Path, command: str, port: int, metrics_port: int) -> Sequence[str]:
    """The image's check, at these ports; the policy worker's is that of the deployments."""
    if command == "policy-worker":
        return ["rewardloop", "health", "rewardloop.v1.ModelService", "--server", f"127.0.0.1:{port}"]
    (check,) = last_stage(dockerfile, "HEALTHCHECK")
    words: list[str] = yaml.safe_load(check.text[check.text.index("[") :])
    if command == "serve":
        return [*words, "--server", f"127.0.0.1:{port}"]
    return [word.replace("9465", str(metrics_port)) for word in words]


def _pairs(step: Instruction) -> Iterator[tuple[str, str]]:
    for pair in step.text.split():
        key, _, value = pair.partition("=")
        yield key, value


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *(str(word) for word in words)], check=True)


@contextmanager
def _redis(directory: Path) -> Iterator[str]:
    server = EmbeddedRedis(directory)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


if __name__ == "__main__":
    raise SystemExit(main())
