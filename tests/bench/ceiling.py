"""What this machine can do without a service: bare ``InferenceSession.run``, in the fastest of several ways.

One run on all cores makes its threads wait for each other in every layer, and runs side by side, one a core, share
memory and caches. Which is faster depends on the model and the machine, so both are tried, in several batch sizes.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from models import Pair
from tokenizers import Tokenizer

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import Manifest
from rewardloop.formats.text import Encoded, Encoder, Turn

BATCH_ROWS = (4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Work:
    """What one run did: pairs, and tokens without padding."""

    pairs: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Rate:
    """Pairs and tokens (without padding) a second."""

    pairs_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Way:
    """How the bare session runs.

    Attributes:
        is_side_by_side: One session of one thread on each core; else one session on all of them.
        batch_rows: Rows of a run.
    """

    is_side_by_side: bool
    batch_rows: int

    def __str__(self) -> str:
        sessions = "a session on each core" if self.is_side_by_side else "one session on all cores"
        return f"{sessions}, batches of {self.batch_rows}"


def cores() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def side_by_side(runs: Sequence[Callable[[], Work]], seconds: float) -> Rate:
    """Repeat each of the runs in a thread of its own, pinned to a core of its own, for about ``seconds``.

    Args:
        runs: At most as many as there are cores.
        seconds: Each thread ends with the run in which they end, and counts its own time.

    Raises:
        ValueError: There are more runs than cores.
    """
    if len(runs) > len(cores()):
        raise ValueError(f"{len(runs)} runs on {len(cores())} cores")
    start = threading.Barrier(len(runs))

    def repeated(core: int, run: Callable[[], Work]) -> Rate:
        os.sched_setaffinity(0, {core})  # of this thread
        start.wait()
        return repeat(run, seconds)

    with ThreadPoolExecutor(len(runs)) as pool:
        rates = list(pool.map(repeated, cores(), runs))
    return Rate(sum(rate.pairs_per_s for rate in rates), sum(rate.tokens_per_s for rate in rates))


def repeat(run: Callable[[], Work], seconds: float) -> Rate:
    """Repeat a run for about ``seconds``, at least once."""
    pairs = tokens = 0
    started = time.perf_counter()
    while (took := time.perf_counter() - started) < seconds or not pairs:
        done = run()
        pairs, tokens = pairs + done.pairs, tokens + done.tokens
    return Rate(pairs / took, tokens / took)


def bare_session(graph: Path, threads: int) -> ort.InferenceSession:
    """Open a graph on the CPU with ONNX Runtime's defaults; 0 threads are one a core."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # not a line for each adapter input
    options.intra_op_num_threads = threads
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Bare:
    """An encoder version's session and tokenizer, without a service around them."""

    def __init__(self, directory: Path, manifest: Manifest, *, threads: int = 0) -> None:
        self._session = bare_session(directory / "model.onnx", threads)
        self._takes_segments = any(each.name == "token_type_ids" for each in self._session.get_inputs())
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.encoder = Encoder(tokenizer, TextFormat.from_json(manifest.text_format), manifest.max_length)

    def encode(self, pair: Pair) -> Encoded:
        return self.encoder.pair((Turn("user", pair.prompt),), pair.response)

    def run(self, feeds: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self._session.run(["logits"], feeds)[0]
        return logits

    def lay_out(self, rows: list[Encoded]) -> dict[str, npt.NDArray[np.int64]]:
        length = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), length), self.encoder.format.pad, dtype=np.int64)
        is_real = np.zeros_like(ids)
        segments = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = row.ids
            is_real[i, : len(row.ids)] = 1
            if row.token_type_ids is not None:
                segments[i, : len(row.ids)] = row.token_type_ids
        feeds = {"input_ids": ids, "attention_mask": is_real}
        return {**feeds, "token_type_ids": segments} if self._takes_segments else feeds


class Ceiling:
    """Runs all pairs, sorted by length, in the way that is fastest here.

    Args:
        directory: The version.
        manifest: Its manifest.
        pairs: What is run.
    """

    def __init__(self, directory: Path, manifest: Manifest, pairs: list[Pair]) -> None:
        self._whole = Bare(directory, manifest)
        self._single = [Bare(directory, manifest, threads=1) for _ in cores()]
        rows = sorted((self._whole.encode(pair) for pair in pairs), key=lambda row: len(row.ids))
        self.lengths = [len(row.ids) for row in rows]
        self._batches = {
            size: [self._whole.lay_out(rows[i : i + size]) for i in range(0, len(rows), size)] for size in BATCH_ROWS
        }
        self.ways = [Way(beside, size) for beside in (False, True) for size in BATCH_ROWS]
        self.way = self.ways[0]

    def choose(self, seconds: float) -> dict[Way, Rate]:
        """Take the fastest way. Each is tried for a quarter of ``seconds``; returns what each gave."""
        found = {way: self.measure(seconds / 4, way) for way in self.ways}
        self.way = max(found, key=lambda way: found[way].tokens_per_s)
        return found

    def measure(self, seconds: float, way: Way | None = None) -> Rate:
        """Whole batches spread evenly over the lengths, for about ``seconds``; None: in the way that is chosen."""
        way = way or self.way
        if not way.is_side_by_side:
            return repeat(self._turns(self._whole, way.batch_rows, 0.0), seconds)
        shares = [i / len(self._single) for i in range(len(self._single))]
        runs = [self._turns(bare, way.batch_rows, share) for bare, share in zip(self._single, shares, strict=True)]
        return side_by_side(runs, seconds)

    def _turns(self, bare: Bare, batch_rows: int, first: float) -> Callable[[], Work]:
        """Return a function that runs another batch each time, beginning at this share of them."""
        batches = self._batches[batch_rows]
        # Steps of about a golden share of all batches visit short and long ones alike: a part of a pass is fair.
        stride = max(1, round(len(batches) * 0.618))
        while math.gcd(stride, len(batches)) != 1:
            stride += 1
        position = int(first * len(batches))

        def run() -> Work:
            nonlocal position
            feeds = batches[position]
            bare.run(feeds)
            position = (position + stride) % len(batches)
            return Work(len(feeds["input_ids"]), int(feeds["attention_mask"].sum()))

        return run
