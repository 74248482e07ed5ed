"""Options that the benchmarks share."""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def parser(description: str | None, *, seconds: float) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seconds", type=float, default=seconds, help=f"of each measurement (default {seconds:g})")
    made.add_argument("--precision", default="float32", help="of the exported graph: float32 or int8")
    made.add_argument("--work", type=Path, default=None, help="where models are kept (default: a temporary directory)")
    made.add_argument("--serve-args", default="", help="more arguments of rewardloop serve, in one string")
    return made


@contextmanager
def work_directory(wanted: Path | None) -> Iterator[Path]:
    """``wanted``, made; or one that is removed again. From here on SIGTERM ends the script as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="rewardloop-bench-") as directory:
        yield Path(directory)
