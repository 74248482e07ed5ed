"""tests/bench/gpu_pack.py puts what a GPU machine lacks into parts that fit a transfer, and says how to use them."""

from __future__ import annotations

import os
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
ROOT = BENCH.parents[1]


@pytest.fixture
def gpu_pack(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_pack

    return gpu_pack


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    """Machine code (kind 2) or PTX (kind 1) of an architecture, behind a header of 64 bytes."""
    return struct.pack("<HHIQ12xI32x", kind, 1, 64, len(payload), architecture) + payload


def library(*containers: bytes) -> bytes:
    """An ELF file with a section of machine code, whose containers hold these entries, and one of text."""
    code = b""
    for entries in containers:
        code += struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries
        code += bytes(-len(code) % 8)
    names = b"\0.nv_fatbin\0.text\0.shstrtab\0"
    bodies = [(0, b""), (1, code), (12, b"\x07" * 24), (18, names)]
    offset, headers, body = 64, b"", b""
    for name, content in bodies:
        headers += struct.pack("<IIQQQQ24x", name, 1, 0, 0, offset + len(body), len(content))
        body += content
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", head, 0x28, offset + len(body))
    struct.pack_into("<HHH", head, 0x3A, 64, len(bodies), 3)
    return bytes(head) + body + headers


def test_only_the_machine_code_of_one_gpu_is_kept(gpu_pack: Any) -> None:
    parts = [entry(2, 80, b"AMPERE.." * 8), entry(2, 90, b"HOPPER.." * 8), entry(1, 90, b"PTX....." * 4)]
    whole = library(parts[0] + parts[1], parts[2], parts[1])
    kept = bytearray(whole)
    assert gpu_pack.keep_machine_code(kept, 90) == 2 * 64
    assert len(kept) == len(whole)
    assert kept.count(b"HOPPER..") == 16
    assert b"AMPERE" not in kept
    assert b"PTX" not in kept
    # Headers, the other sections and their names are as before.
    expected = whole.replace(b"AMPERE..", bytes(8)).replace(b"PTX.....", bytes(8))
    assert bytes(kept) == expected


def test_a_library_without_that_gpu_or_of_another_form_is_refused(gpu_pack: Any) -> None:
    with pytest.raises(ValueError, match="no machine code for architecture 90"):
        gpu_pack.keep_machine_code(bytearray(library(entry(2, 80, b"AMPERE.."))), 90)
    with pytest.raises(ValueError, match="not a 64-bit"):
        gpu_pack.keep_machine_code(bytearray(b"MZ" + bytes(100)), 90)
    cut = entry(2, 90, b"HOPPER..")[:-8]
    with pytest.raises(ValueError, match="longer than its container"):
        gpu_pack.keep_machine_code(bytearray(library(cut)), 90)


def test_the_parts_put_together_on_the_machine_are_the_packages_and_graphs(gpu_pack: Any, tmp_path: Path) -> None:
    wheels, graphs, parts, machine = (tmp_path / name for name in ("wheels", "graphs", "parts", "machine"))
    for directory in (wheels, graphs, parts, machine):
        directory.mkdir()
    noise = os.urandom(30_000)
    with zipfile.ZipFile(wheels / "structlog-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("structlog/__init__.py", noise)
    with zipfile.ZipFile(wheels / "onnxruntime_gpu-1-cp312-cp312-linux.whl", "w") as wheel:
        code = library(entry(2, 80, b"AMPERE.."), entry(2, 90, b"HOPPER.."))
        wheel.writestr("onnxruntime/capi/libonnxruntime_providers_cuda.so", code)
        wheel.writestr("onnxruntime/capi/libonnxruntime_providers_tensorrt.so", b"left out")
    (graphs / "bert-tiny.onnx").write_bytes(b"graph")
    there = str(machine / "there")
    commands = gpu_pack.pack(wheels, graphs, parts, 20_000, 90, there)
    assert len(commands) == len(list(parts.iterdir())) == 2
    assert all(part.stat().st_size <= 20_000 for part in parts.iterdir())

    python = machine / "python3"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    for command in commands:
        assert len(command) < 2_000
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env={"PATH": f"{machine}:{os.environ['PATH']}", "OUT": "/out"},
            capture_output=True,
            text=True,
            check=True,
        )
    path, *arguments = done.stdout.split()
    assert path.split(":")[:2] == [f"{there}/site", f"{ROOT}/protos"]
    assert " ".join(arguments) == (f"tests/bench/gpu.py --device cuda --from {there}/graphs --out /out/lines.jsonl")
    assert (machine / "there/site/structlog/__init__.py").read_bytes() == noise
    capi = machine / "there/site/onnxruntime/capi"
    assert [path.name for path in capi.iterdir()] == ["libonnxruntime_providers_cuda.so"]
    assert b"AMPERE" not in (capi / "libonnxruntime_providers_cuda.so").read_bytes()
    assert (machine / "there/graphs/bert-tiny.onnx").read_bytes() == b"graph"
