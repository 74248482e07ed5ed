"""Publishers race for version numbers of an object store; each gets one of its own, and no version is mixed."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.storing.claim import NumberClaim

_LOCK = threading.RLock()


class Conditional(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """An object store that creates an object only where none is, as S3 does with ``If-None-Match: *``."""

    protocol = "conditional"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with _LOCK:
            if mode == "create" and self.exists(path):
                raise OSError("412: at least one of the preconditions did not hold")
            super().pipe_file(path, value)


class Plain(MemoryFileSystem):  # type: ignore[misc]
    """An object store that knows no condition."""

    protocol = "plain"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes) -> None:
        super().pipe_file(path, value)


class Refusing(Conditional):
    """An object store that answers a condition with "not implemented"."""

    protocol = "refusing"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if mode == "create":
            raise OSError("501: not implemented")
        super().pipe_file(path, value)


@pytest.fixture(params=[Conditional, Plain, Refusing])
def url(request: pytest.FixtureRequest) -> str:
    filesystem = request.param
    fsspec.register_implementation(filesystem.protocol, filesystem, clobber=True)
    return f"{filesystem.protocol}://{uuid.uuid4().hex}"


def publish(url: str, cache: Path, text: str, together: threading.Barrier) -> str:
    store = ModelStore(url, cache_dir=cache)
    numbers = store._numbers

    def numbers_of_all(model: str) -> list[int]:
        found = numbers(model)
        if not together.broken and together.n_waiting < together.parties:
            with suppress(threading.BrokenBarrierError):  # the others have theirs already
                together.wait(1)  # every publisher has seen the same numbers
        return found

    store._numbers = numbers_of_all  # type: ignore[method-assign]

    def write(directory: Path) -> None:
        for name in ("a", "b"):
            (directory / name).write_text(text)

    return store.publish(Manifest(model="reward"), write).version


@pytest.mark.parametrize("publishers", [2, 6])
def test_publishers_at_once_get_a_number_each(url: str, publishers: int, tmp_path: Path) -> None:
    together = threading.Barrier(publishers)
    with ThreadPoolExecutor(publishers) as threads:
        found = list(
            threads.map(lambda i: publish(url, tmp_path / f"cache{i}", f"text {i}", together), range(publishers))
        )
    assert len(set(found)) == publishers
    store = ModelStore(url, cache_dir=tmp_path / "reader")
    assert [str(number) for number in store.versions("reward")] == sorted(found, key=int)
    for i, version in enumerate(found):
        directory = store.fetch("reward", version)  # checks every file against the manifest
        assert {(directory / name).read_text() for name in ("a", "b")} == {f"text {i}"}
    if url.startswith("conditional"):
        assert sorted(found, key=int) == [str(number + 1) for number in range(publishers)]


def test_number_of_a_writer_that_died_is_not_used_again(url: str, tmp_path: Path) -> None:
    store = ModelStore(url, cache_dir=tmp_path)
    filesystem, root = fsspec.core.url_to_fs(url)
    assert NumberClaim(filesystem, f"{root}/reward/1").take()
    assert publish(url, tmp_path, "text", threading.Barrier(1)) == "2"
    assert store.versions("reward") == [2]


def test_failed_publication_leaves_nothing(url: str, tmp_path: Path) -> None:
    store = ModelStore(url, cache_dir=tmp_path)

    class Fenced(Exception):
        pass

    def held() -> Any:
        raise Fenced

    with pytest.raises(Fenced):
        store.publish(Manifest(model="reward"), lambda directory: (directory / "a").touch(), held)
    assert store._numbers("reward") == []
    assert publish(url, tmp_path, "text", threading.Barrier(1)) == "1"


def test_claim_that_a_store_ignores_is_noticed_before_the_manifest(tmp_path: Path) -> None:
    class Ignoring(Conditional):
        protocol = "ignoring"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
            super().pipe_file(path, value)

    fsspec.register_implementation("ignoring", Ignoring, clobber=True)
    url = f"ignoring://{uuid.uuid4().hex}"
    filesystem, root = fsspec.core.url_to_fs(url)
    store, other = ModelStore(url, cache_dir=tmp_path), NumberClaim(filesystem, f"{root}/reward/1")
    put_file, taken = filesystem.put_file, []

    def put_and_be_overtaken(*args: Any, **kwargs: Any) -> None:
        put_file(*args, **kwargs)
        if not taken:
            taken.append(other.take())

    filesystem.put_file = put_and_be_overtaken
    try:
        published = store.publish(Manifest(model="reward"), lambda directory: (directory / "a").touch())
    finally:
        filesystem.put_file = put_file
    assert (taken, published.version) == ([True], "2")
