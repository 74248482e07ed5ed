"""Packs what a GPU machine without a network lacks to run gpu.py, in parts that each fit one transfer beside the tree.

    python tests/bench/gpu_pack.py DIR [--most-mib 64] [--python 3.12] [--machine-code 90] [--wheels WHEELS]

The machine has torch, transformers, onnx and what they need (a CUDA 13 build of torch brings cuBLAS and cuDNN). It gets
the packages of `LACKING`, ONNX Runtime for CUDA without the machine code of other GPUs, and the graphs that gpu.py
would trace. pip downloads the wheels, or they lie in WHEELS. DIR should be in the tree and ignored by git.

The last lines say what to run there, one command for each part; the last one runs gpu.py from the root of the tree.
That ONNX Runtime takes a library without the other machine code is not proven: `--machine-code 0` keeps all of it, in
more parts.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ONNX_RUNTIME = "onnxruntime-gpu>=1.31"
# What gpu.py imports beside what the machine has, with what these need. Two it may have in an older version than the
# generated code of the protos takes.
LACKING = (
    "annotated-types",
    "googleapis-common-protos",
    "grpcio>=1.85.1",
    "grpcio-health-checking",
    "grpcio-reflection",
    "grpcio-status",
    "protobuf>=7.35",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "python-dotenv",
    "redis",
    "structlog",
    "typing-inspection",
)
# Of ONNX Runtime's wheel: its Python module does not link the first, and the others are of other providers.
_LEFT_OUT = ("libonnxruntime.so", "providers_tensorrt", "providers_openvino", "/transformers/models/")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_CUDA_LIBRARY = "libonnxruntime_providers_cuda.so"

# A section of machine code holds containers (magic number, version, bytes of the header, bytes of the entries), whose
# entries say for which architecture their payload is.
_SECTION = b".nv_fatbin"
_CONTAINER, _MAGIC = struct.Struct("<IHHQ"), 0xBA55ED50
_ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, bytes of the header, bytes of the payload, architecture
_PTX = 1


def sections(library: bytes | bytearray) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset and bytes of each section of a 64-bit little-endian ELF file; raise ValueError for another."""
    if library[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, table + i * size) for i in range(count)]
    base = headers[names][4]
    for name, _, _, _, offset, length in headers:
        start = base + name
        yield bytes(library[start : library.index(0, start)]), offset, length


def keep_machine_code(library: bytearray, architecture: int) -> int:
    """Zero the machine code and PTX of all other architectures, in place. The headers stay.

    Args:
        library: An ELF file.
        architecture: The compute capability without its dot, as 90.

    Returns:
        The bytes of machine code of the architecture.

    Raises:
        ValueError: There is none of the architecture, or the file is of another form.
    """
    kept = 0
    for name, offset, length in sections(library):
        if name != _SECTION:
            continue
        at, end = offset, offset + length
        while at + _CONTAINER.size <= end:
            magic, _, header, entries = _CONTAINER.unpack_from(library, at)
            if magic != _MAGIC:
                at += 8  # containers are aligned to 8 bytes, with zeros between
                continue
            entry, at = at + header, at + header + entries
            while entry + _ENTRY.size <= at:
                kind, _, head, payload, of = _ENTRY.unpack_from(library, entry)
                if head < _ENTRY.size or entry + head + payload > at:
                    raise ValueError(f"an entry at {entry} is longer than its container")
                if kind != _PTX and of == architecture:
                    kept += payload
                else:
                    library[entry + head : entry + head + payload] = bytes(payload)
                entry += head + payload
            at = (at + 7) // 8 * 8
    if not kept:
        raise ValueError(f"no machine code for architecture {architecture}")
    return kept


def download(names: Sequence[str], python: str, target: Path) -> None:
    """Download a wheel of each name, without what it needs."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(target)]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [part for platform in _PLATFORMS for part in ("--platform", platform)]
    subprocess.run([*command, *names], check=True)


def unpack(wheel: Path, site: Path, architecture: int) -> None:
    """Unpack a wheel into a folder of packages, and drop what the machine cannot use."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if wheel.name.startswith("onnxruntime") and any(part in name for part in _LEFT_OUT):
                continue
            archive.extract(name, site)
    library = site / "onnxruntime" / "capi" / _CUDA_LIBRARY
    if architecture and wheel.name.startswith("onnxruntime"):
        code = bytearray(library.read_bytes())
        keep_machine_code(code, architecture)
        library.write_bytes(code)


def tree_bytes() -> int:
    """Return the bytes of the files that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    return sum((ROOT / name).lstat().st_size for name in listed.decode().split("\0") if name and (ROOT / name).exists())


def split(archive: Path, target: Path, most: int) -> list[Path]:
    """Cut a file into parts of at most so many bytes, named in order."""
    parts = list[Path]()
    with archive.open("rb") as file:
        while block := file.read(most):
            parts.append(target / f"part-{len(parts):02d}")
            parts[-1].write_bytes(block)
    return parts


def pack(wheels: Path, graphs: Path, directory: Path, most: int, architecture: int, there: str) -> list[str]:
    """Write the parts.

    Args:
        wheels: A folder of wheels.
        graphs: What `gpu_world.prepare` has written.
        directory: Gets the parts.
        most: Most bytes of a part.
        architecture: The machine code that is kept; 0: all.
        there: A folder on the machine, outside the tree.

    Returns:
        What to run on the machine, in order.
    """
    with tempfile.TemporaryDirectory(prefix="rewardloop-pack-") as made:
        site, archive = Path(made) / "site", Path(made) / "all.tar.xz"
        for wheel in sorted(wheels.glob("*.whl")):
            unpack(wheel, site, architecture)
        with tarfile.open(archive, "w:xz", preset=9) as packed:
            packed.add(site, "site")
            packed.add(graphs, "graphs")
        return commands(split(archive, directory, most), there)


def commands(parts: Sequence[Path], there: str) -> list[str]:
    """Return what to run on the machine, in order, one for each part; ``there`` is a folder outside the tree."""
    found = [f"mkdir -p {there} && cp {_named(part)} {there}/" for part in parts]
    paths = ":".join(f"$PWD/{name}" for name in ("protos", "server", "client", "trainer", "deploy"))
    found[-1] += f" && cat {there}/part-* | tar -xJ -C {there} && PYTHONPATH={there}/site:{paths}"
    found[-1] += f" python3 tests/bench/gpu.py --device cuda --from {there}/graphs --out ${{OUT:-.}}/lines.jsonl"
    return found


def _named(path: Path) -> Path:
    path = path.resolve()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--most-mib", type=float, default=64.0, help="of one transfer, the tree included (default 64)")
    parser.add_argument("--python", default="3.12", help="the machine's Python (default 3.12)")
    parser.add_argument("--machine-code", type=int, default=90, help="keep that of this GPU (default 90; 0: of all)")
    parser.add_argument("--wheels", type=Path, help="where the wheels lie (default: pip downloads them)")
    parser.add_argument("--there", default="/tmp/rewardloop-gpu", help="a folder on the machine, outside the tree")
    parser.add_argument("--tiny", action="store_true", help="graphs for gpu.py --tiny")
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    if subprocess.run(["git", "check-ignore", "-q", str(options.directory.resolve() / "part-00")], cwd=ROOT).returncode:
        parser.error(f"git does not ignore {options.directory}: add it to .git/info/exclude")
    most = int(options.most_mib * 2**20 * 0.97) - tree_bytes()  # a little less: names and folders take room, too
    if most < 2**20:
        parser.error(f"the tree alone leaves {most} bytes of {options.most_mib:g} MiB")
    with tempfile.TemporaryDirectory(prefix="rewardloop-pack-") as made:
        wheels, graphs = options.wheels or Path(made) / "wheels", Path(made) / "graphs"
        if options.wheels is None:
            download([*LACKING, ONNX_RUNTIME], options.python, wheels)
        import gpu_world

        gpu_world.prepare(gpu_world.TINY if options.tiny else gpu_world.REAL, graphs)
        made_commands = pack(wheels, graphs, options.directory, most, options.machine_code, options.there)
    print("\n".join(made_commands))


if __name__ == "__main__":
    main()
