"""With trusted keys a store gives out what one of them signed, as it was signed, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import x25519
from support.signing_keys import PRIVATE_PEM, key_pair

from rewardloop.formats.signatures import SIGNATURE, Signer, TrustedKeys, UnusableKey, signer, trusted_keys
from rewardloop.formats.store import CorruptVersion, Manifest, ModelStore, UntrustedVersion


def write_files(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"weights")


def publish(url: str | Path, private: Path | None, cache: Path) -> None:
    store = ModelStore(url, cache, signer=signer(str(private)) if private else None)
    store.publish(Manifest("reward", metrics={"accuracy": 0.7}), write_files)


def reader(url: str | Path, public: Path, cache: Path) -> ModelStore:
    return ModelStore(url, cache, trusted=trusted_keys(str(public)))


@pytest.fixture(params=["local", "remote"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}/models"


def test_signed_version_is_read(url: str, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "a")
    publish(url, private, tmp_path / "writer")
    store = reader(url, public, tmp_path / "reader")
    assert store.manifest("reward", 1).metrics == {"accuracy": 0.7}
    assert (store.fetch("reward", 1) / "model.onnx").read_bytes() == b"weights"
    assert ModelStore(url, tmp_path / "any").fetch("reward", 1).is_dir()


def test_unsigned_version_and_one_signed_by_another_are_refused(url: str, tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "a")
    stranger, _ = key_pair(tmp_path, "b")
    publish(url, None, tmp_path / "writer")
    publish(url, stranger, tmp_path / "writer")
    store = reader(url, public, tmp_path / "reader")
    for version, message in ((1, "is not signed$"), (2, "not signed with a trusted key")):
        with pytest.raises(UntrustedVersion, match=message):
            store.manifest("reward", version)
        with pytest.raises(UntrustedVersion, match=message):
            store.fetch("reward", version)


def test_either_of_two_keys_may_have_signed(tmp_path: Path) -> None:
    pairs = [key_pair(tmp_path, name) for name in "ab"]
    both = tmp_path / "both.pem"
    both.write_bytes(b"the old one\n" + pairs[0][1].read_bytes() + b"\n" + pairs[1][1].read_bytes())
    for private, _ in pairs:
        publish(tmp_path / "store", private, tmp_path)
    store = reader(tmp_path / "store", both, tmp_path)
    assert [store.manifest("reward", version).version for version in (1, 2)] == ["1", "2"]


@pytest.mark.parametrize("field", ["metrics", "created_at", "heads", "files"])
def test_whatever_is_altered_in_a_manifest_is_refused(tmp_path: Path, field: str) -> None:
    private, public = key_pair(tmp_path, "a")
    publish(tmp_path / "store", private, tmp_path)
    path = tmp_path / "store" / "reward" / "1" / "manifest.json"
    raw = json.loads(path.read_text())
    raw[field] = {"metrics": {"accuracy": 0.99}, "created_at": "2026-01-01", "heads": 2, "files": {}}[field]
    path.write_text(json.dumps(raw))
    with pytest.raises(UntrustedVersion):
        reader(tmp_path / "store", public, tmp_path).manifest("reward", 1)


def test_signature_of_another_version_does_not_do(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "a")
    for _ in range(2):
        publish(tmp_path / "store", private, tmp_path)
    one, two = (tmp_path / "store" / "reward" / version for version in "12")
    (two / SIGNATURE).write_bytes((one / SIGNATURE).read_bytes())
    store = reader(tmp_path / "store", public, tmp_path)
    with pytest.raises(UntrustedVersion):
        store.manifest("reward", 2)
    # A whole older version under a newer number is not what it says it is.
    for name in ("manifest.json", SIGNATURE):
        (two / name).write_bytes((one / name).read_bytes())
    with pytest.raises(CorruptVersion, match="holds the manifest of"):
        store.manifest("reward", 2)


@pytest.mark.parametrize("signature", [b"", b"AAAA", b"\xff\xfe", b"A" * 88, b"=" * 88])
def test_broken_signature_is_refused(tmp_path: Path, signature: bytes) -> None:
    private, public = key_pair(tmp_path, "a")
    publish(tmp_path / "store", private, tmp_path)
    (tmp_path / "store" / "reward" / "1" / SIGNATURE).write_bytes(signature)
    with pytest.raises(UntrustedVersion):
        reader(tmp_path / "store", public, tmp_path).manifest("reward", 1)


def test_file_without_a_fitting_key_is_said_to_be_unusable(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "a")
    other = tmp_path / "x25519.pem"
    other.write_bytes(x25519.X25519PrivateKey.generate().private_bytes(*PRIVATE_PEM))
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    for path in (public, other, empty, tmp_path / "absent.pem"):
        with pytest.raises(UnusableKey, match=path.name):
            Signer.from_file(path)
    for path in (private, other, empty, tmp_path / "absent.pem"):
        with pytest.raises(UnusableKey, match=path.name):
            TrustedKeys.from_file(path)
    assert signer("") is None
    assert trusted_keys("") is None
