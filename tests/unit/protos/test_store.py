"""The model store: whole versions or none, and nothing altered is ever read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rewardloop.formats.file_modes import private_cache
from rewardloop.formats.store import (
    Calibration,
    CorruptVersion,
    DataRange,
    Manifest,
    ModelStore,
    UnsafeVersion,
    VersionNotFound,
)


def write_files(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"weights")
    (directory / "torch").mkdir()
    (directory / "torch" / "config.json").write_text("{}")


DIRECTORIES = {Path(), Path("torch")}


def described(**fields: object) -> Manifest:
    return Manifest(
        model="reward",
        data=DataRange("1-0", "9-0", 9, (1.5, 2.5)),
        calibration=Calibration(2.0, -1.0),
        metrics={"heldout_accuracy": 0.7},
        **fields,  # type: ignore[arg-type]
    )


@pytest.fixture
def _no_cache_yet() -> Iterator[None]:
    private_cache.cache_clear()
    yield
    private_cache.cache_clear()


@pytest.mark.usefixtures("_no_cache_yet")
@pytest.mark.parametrize("has_home", [True, False])
def test_what_is_fetched_lies_where_no_other_user_can_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_home: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home") if has_home else "/dev/null/home")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.umask(0o022)
    try:
        place = private_cache()
    finally:
        os.umask(before)
    assert place == private_cache()
    assert place.stat().st_mode & 0o777 == 0o700
    if has_home:
        assert place == tmp_path / "home" / ".cache" / "rewardloop"
    else:
        assert place.parent == tmp_path
    store = ModelStore("memory://place/models")
    store.publish(described(), write_files)
    assert store.fetch("reward", 1).is_relative_to(place)


def test_published_version_reads_back_whole(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    published = store.publish(described(), write_files)
    assert published.version == "1"
    assert store.versions("reward") == [1]
    assert store.manifest("reward", 1) == published
    assert (store.fetch("reward", 1) / "model.onnx").read_bytes() == b"weights"
    assert set(published.files) == {"model.onnx", "torch/config.json"}


@pytest.mark.parametrize(
    ("umask", "file", "directory"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)]
)
def test_a_version_is_as_readable_as_the_umask_allows(tmp_path: Path, umask: int, file: int, directory: int) -> None:
    def write(version: Path) -> None:
        write_files(version)
        (version / "model.onnx").chmod(0o600)  # as safetensors makes its files
        (version / "torch").chmod(0o700)  # as a temporary directory is

    before = os.umask(umask)
    try:
        published = ModelStore(tmp_path / "store").publish(described(), write)
    finally:
        os.umask(before)
    version = tmp_path / "store" / "reward" / published.version
    modes = {path.relative_to(version): path.stat().st_mode & 0o777 for path in (version, *version.rglob("*"))}
    assert {path: mode for path, mode in modes.items() if mode != (directory if path in DIRECTORIES else file)} == {}


def test_versions_count_up_and_the_digest_follows_content(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = store.publish(described(parent=None), write_files)
    same = store.publish(described(parent="1"), write_files)
    other = store.publish(described(), lambda d: (d / "model.onnx").write_bytes(b"other") and None)
    assert [first.version, same.version, other.version] == ["1", "2", "3"]
    assert first.digest == same.digest != other.digest


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)

    def fail(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.publish(described(), fail)
    assert store.versions("reward") == []
    assert list((tmp_path / "reward").iterdir()) == []


def test_concurrent_publishers_get_different_numbers(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(store.publish(described(), write_files).version)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made, key=int) == [str(i) for i in range(1, 9)]
    assert store.versions("reward") == list(range(1, 9))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.onnx").write_bytes(b"weightz"), "altered"),
        (lambda d: (d / "model.onnx").unlink(), "missing"),
        (lambda d: (d / "extra.bin").write_bytes(b""), "not in the manifest"),
        (lambda d: (d / "manifest.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe"), "UTF-8"),
    ],
)
def test_damaged_version_is_refused(tmp_path: Path, damage, message: str) -> None:
    store = ModelStore(tmp_path)
    store.publish(described(), write_files)
    damage(tmp_path / "reward" / "1")
    with pytest.raises(CorruptVersion, match=message):
        store.fetch("reward", 1)


def test_altered_calibration_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish(described(), write_files)
    path = tmp_path / "reward" / "1" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["calibration"]["scale"] = 3.0
    path.write_text(json.dumps(raw))
    with pytest.raises(CorruptVersion, match="digest"):
        store.fetch("reward", 1)


def test_bounds_of_length_that_are_not_set_are_not_written(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    unbounded = store.publish(described(), write_files)
    assert set(json.loads(unbounded.to_json())["calibration"]) == {"scale", "offset", "length_slope"}
    bounded = replace(described(), calibration=Calibration(2.0, -1.0, 0.5, 8, 200))
    assert store.publish(bounded, write_files).calibration == Calibration(2.0, -1.0, 0.5, 8, 200)
    assert store.manifest("reward", 2).digest != unbounded.digest


def test_file_name_that_leaves_the_version_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish(described(), write_files)
    path = tmp_path / "reward" / "1" / "manifest.json"
    raw = json.loads(path.read_text())
    raw["files"]["../../../etc/passwd"] = "0" * 64
    path.write_text(json.dumps(raw))
    with pytest.raises(CorruptVersion):
        store.fetch("reward", 1)


def test_unknown_version_is_not_found(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for version in ("7", "latest", "../1"):
        with pytest.raises(VersionNotFound):
            store.fetch("reward", version)


def test_remote_store_is_fetched_and_checked(tmp_path: Path) -> None:
    store = ModelStore("memory://store-test/models", cache_dir=tmp_path)
    published = store.publish(described(), write_files)
    assert store.versions("reward") == [1]
    directory = store.fetch("reward", published.version)
    assert (directory / "torch" / "config.json").read_text() == "{}"
    (directory / "model.onnx").write_bytes(b"altered")
    with pytest.raises(CorruptVersion):
        store.fetch("reward", published.version)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "torch/optimizer.PT", "modeling.py", "op.so"])
def test_pickles_and_code_are_neither_published_nor_read(tmp_path: Path, name: str) -> None:
    store = ModelStore(tmp_path)

    def write(directory: Path) -> None:
        write_files(directory)
        (directory / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")

    with pytest.raises(UnsafeVersion, match=name):
        store.publish(described(), write)
    assert store.versions("reward") == []

    # One that another writer has put there, manifest and all.
    published = store.publish(described(), write_files)
    directory = tmp_path / "reward" / "1"
    (directory / name).write_bytes(b"x")
    files = {**published.files, name: hashlib.sha256(b"x").hexdigest()}
    raw = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**raw, "files": files}))
    with pytest.raises(UnsafeVersion, match=name):
        store.fetch("reward", 1)


@pytest.mark.parametrize("target", ["/etc/hostname", "model.onnx", "torch"])
def test_links_are_refused(tmp_path: Path, target: str) -> None:
    store = ModelStore(tmp_path)

    def write(directory: Path) -> None:
        write_files(directory)
        (directory / "link").symlink_to(target)

    with pytest.raises(UnsafeVersion, match="link"):
        store.publish(described(), write)
    store.publish(described(), write_files)
    (tmp_path / "reward" / "1" / "model.onnx").rename(tmp_path / "elsewhere")
    (tmp_path / "reward" / "1" / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeVersion, match="link"):
        store.fetch("reward", 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", ["model.onnx"]),
        ("files", {"model.onnx": 7}),
        ("files", None),
        ("max_length", "512"),
        ("max_length", 0),
        ("max_length", 10**12),
        ("heads", True),
        ("heads", -1),
        ("metrics", {"accuracy": "high"}),
        ("notes", []),
        ("text_format", "plain"),
        ("created_at", "yesterday"),
        ("created_at", 7),
        ("calibration", {"scale": "2", "offset": 0.0}),
        ("calibration", {"scale": float("nan"), "offset": 0.0}),
        ("calibration", {"scale": 1.0, "offset": float("inf")}),
        ("calibration", {"scale": 1.0, "offset": 0.0, "length_slope": 1.0, "least_tokens": -1}),
        ("calibration", {"scale": 1.0, "offset": 0.0, "length_slope": 1.0, "most_tokens": 8.5}),
        ("data", {"first_stream_id": 1, "last_stream_id": "2-0", "signals": 1, "arrivals": []}),
        ("data", {"first_stream_id": "1-0", "last_stream_id": "2-0", "signals": 1, "arrivals": ["now"]}),
        ("trunk", {"version": 1, "digest": "d"}),
        ("trunk", ["1"]),
        ("parent", 3),
        ("seed", "random"),
        ("surprise", 1),
        ("format_version", 2),
    ],
)
def test_manifest_with_a_field_of_another_kind_is_refused(tmp_path: Path, field: str, value: object) -> None:
    store = ModelStore(tmp_path)
    store.publish(described(), write_files)
    path = tmp_path / "reward" / "1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(CorruptVersion, match=f"(?i){field}|format version"):
        store.manifest("reward", 1)


def test_manifest_nested_without_end_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.publish(described(), write_files)
    (tmp_path / "reward" / "1" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CorruptVersion, match="cannot be read"):
        store.manifest("reward", 1)


def test_directory_without_a_manifest_is_no_version_and_keeps_its_number(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for _ in range(2):
        store.publish(Manifest(model="reward"), lambda directory: (directory / "model.onnx").write_bytes(b"x") and None)
    (tmp_path / "reward" / "2" / "manifest.json").unlink()
    assert store.versions("reward") == [1]
    published = store.publish(
        Manifest(model="reward"), lambda directory: (directory / "model.onnx").write_bytes(b"x") and None
    )
    assert published.version == "3"
