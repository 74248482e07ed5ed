"""Fails when the committed stubs differ from what the protos generate."""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
WITH_SERVICES = {"reward", "feedback", "policy", "model", "labelling", "operations", "access"}


def generate(out: Path) -> None:
    """Write the stubs of every proto under ``out``. Raises SystemExit when protoc fails."""
    sources = sorted((PROTOS / "rewardloop" / "v1").glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    includes = [f"-I{path}" for path in (PROTOS, well_known, sysconfig.get_paths()["purelib"])]
    arguments = [*includes, f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *arguments, *map(str, sources)]) != 0:
        raise SystemExit("protoc failed")
    for source in sources:
        if source.stem not in WITH_SERVICES:
            (out / "rewardloop" / "v1" / f"{source.stem}_pb2_grpc.py").unlink()


def main() -> int:
    if "--write" in sys.argv:
        generate(PROTOS)
        return 0
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        made = {p.relative_to(fresh): p.read_bytes() for p in Path(fresh).rglob("*_pb2*.py*")}
    kept = {p.relative_to(PROTOS): p.read_bytes() for p in PROTOS.rglob("*_pb2*.py*") if "__pycache__" not in p.parts}
    stale = sorted(str(p) for p in made.keys() | kept.keys() if made.get(p) != kept.get(p))
    if stale:
        print(f"stale generated code, run 'make protos': {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
