"""The child process that tries a version before the serving process loads it.

It is ``python -m rewardloop_server.loading.probe``, or another module that calls `main`. It reads an `Order` from its
standard input, and writes a line of JSON for each step that it begins, then its verdict.
It has no time limit of its own: `Prober` in the serving process ends it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rewardloop.formats.text import Encoder
    from rewardloop_server.loading.opened import Opens

# The name of the last line: the version may be loaded, or it may not.
PASSED, REFUSED = "passed", "refused"
# Behind the scoring of a busy machine, but with a quarter of a core left to it: a trial that gets almost no time would
# exceed its limit, and no new version would ever be served there.
_NICENESS = 5
_SIGKILL_WITH_PARENT = (1, 9)  # PR_SET_PDEATHSIG, SIGKILL
_SHORT = 16  # tokens of the first run
# Words of the C++ library and of ONNX Runtime for memory that was refused.
_NO_MEMORY = ("bad_alloc", "allocate memory", "bad allocation")


@dataclass(frozen=True, slots=True)
class Order:
    """What to try.

    Attributes:
        manifest: The version's manifest, as JSON.
        directory: Its files.
        device: The `Device` on which to try it, by the names of its attributes.
        allows_loops: As of `check_files`.
        memory_bytes: Memory beyond which the system itself refuses more; 0: no such bound.
        parent: Process id of the serving process.
    """

    manifest: str
    directory: str
    device: dict[str, Any]
    allows_loops: bool
    memory_bytes: int
    parent: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main(opens: Callable[[], Opens] | None = None) -> int:
    """Try the version. Returns 0 if it gave a verdict.

    Args:
        opens: Returns what opens a version, and may import for it; None: its graph is opened.
    """
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no report
    order = Order(**json.loads(sys.stdin.read()))
    _step_aside(order)

    def report(**line: Any) -> None:
        _write(reports, line)

    from rewardloop_server.calls.errors import VersionRefused

    try:
        found = _try(order, opens, lambda step: report(step=step))
    except VersionRefused as error:
        cause = str(error.__cause__ or "")
        why = "; no memory was left for it" if any(sign in cause for sign in _NO_MEMORY) else ""
        report(step=REFUSED, reason=error.reason, message=error.message + why, cause=cause)
    except Exception as error:  # any exception that a file causes refuses the version
        report(step=REFUSED, reason="", message=f"it raises {type(error).__name__}", cause=str(error))
    else:
        report(step=PASSED, found=found)
    reports.flush()
    os._exit(0)  # tearing a large session down takes time


def _write(reports: TextIO, line: dict[str, Any]) -> None:
    reports.write(json.dumps(line) + "\n")
    reports.flush()


def _step_aside(order: Order) -> None:
    """Go behind the serving process: for the processor, for memory that runs out, and at its death."""
    os.nice(_NICENESS)
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(*_SIGKILL_WITH_PARENT, 0, 0, 0)
    if os.getppid() != order.parent:  # it died before that
        os._exit(1)
    with suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text("1000")
    if order.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (order.memory_bytes, order.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _try(order: Order, opens: Callable[[], Opens] | None, step: Callable[[str], None]) -> dict[str, Any] | None:
    """Do what a load does, once and shortly. Returns the `Checked` of a version with a graph. Raises VersionRefused."""
    from rewardloop.formats.store import CorruptVersion, Manifest
    from rewardloop.formats.storing.pooling_file import POOLING
    from rewardloop_server.device.choose import Device, load_libraries
    from rewardloop_server.guard.watch import Watch
    from rewardloop_server.loading.limits import LoadGuard
    from rewardloop_server.loading.opened import OpenGraph
    from rewardloop_server.loading.opening import check_files, read_encoder
    from rewardloop_server.loading.warm import check, check_text
    from rewardloop_server.scoring.cost import CostModel
    from rewardloop_server.scoring.engine import RewardModel
    from rewardloop_server.versions.host import refusal

    manifest, directory = Manifest.from_json(order.manifest), Path(order.directory)
    guard = LoadGuard(Watch(), manifest.model, manifest.version, 0.0, 0.0)  # nobody watches here
    step("check")
    encoder = read_encoder(manifest, directory)
    if manifest.trunk is not None:
        return None
    if POOLING in manifest.files:
        step("proof")
        _read_proof(directory / POOLING, encoder)
        return None
    try:
        found = check_files(manifest, directory, encoder, allows_loops=order.allows_loops)
    except CorruptVersion as error:
        raise refusal(error) from error
    step("libraries")
    device = Device(**{**order.device, "device_ids": tuple(order.device["device_ids"])})
    load_libraries(device)
    open_version: Opens = OpenGraph if opens is None else opens()
    short = min(_SHORT, manifest.max_length)
    model: RewardModel | None = None
    for each in device.each():  # so that the bounds of a step are those of one place
        step("open")
        model = None  # frees what was open at the place before
        opened = open_version(manifest, directory, each, guard)
        model = RewardModel(manifest, encoder, opened.trial(), CostModel(0.0, 0.0, 0.0))
        del opened
        step("first run")
        check(model, 1, short, found.highest, guard)
        step("short run")
        check(model, 1, short, found.highest, guard)
        step("longest run")
        check(model, 1, manifest.max_length, found.highest, guard)
        step("text")
        check_text(model)
    return asdict(found)


def _read_proof(path: Path, encoder: Encoder) -> None:
    """Read the file of a version that a server elsewhere runs, and its texts."""
    from rewardloop.formats.storing.pooling_file import BadPoolingFile, PoolingFile
    from rewardloop.formats.text import RefusedConversation, Turn

    # Where the version is loaded, these errors are told with their reasons.
    with suppress(OSError, UnicodeDecodeError, BadPoolingFile, RefusedConversation):
        for probe in PoolingFile.from_json(path.read_text(encoding="utf-8")).probes:
            encoder.pair([Turn(role, content) for role, content in probe.conversation], probe.response)


if __name__ == "__main__":
    raise SystemExit(main())
