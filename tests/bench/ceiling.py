"""The ceiling of an encoder on this machine: bare ``InferenceSession.run`` on perfectly sorted batches."""

from __future__ import annotations

import math
import time
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
class Pass:
    """``pairs`` and ``tokens`` (without padding) run in ``seconds``."""

    pairs: int
    tokens: int
    seconds: float

    @property
    def pairs_per_s(self) -> float:
        return self.pairs / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class Bare:
    """An encoder version's session and tokenizer, without a service around them."""

    def __init__(self, directory: Path, manifest: Manifest, *, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # not a line for each adapter input
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])
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
    """Runs all pairs, sorted by length, in batches of the size that is fastest here."""

    def __init__(self, bare: Bare, pairs: list[Pair]) -> None:
        self._bare = bare
        rows = sorted((bare.encode(pair) for pair in pairs), key=lambda row: len(row.ids))
        self.lengths = [len(row.ids) for row in rows]
        self._batches = {
            size: [bare.lay_out(rows[i : i + size]) for i in range(0, len(rows), size)] for size in BATCH_ROWS
        }
        self.batch_rows = BATCH_ROWS[0]

    def choose(self, seconds: float) -> None:
        """Take the fastest batch size, each tried for a share of ``seconds``."""
        share = seconds / len(BATCH_ROWS)
        self.batch_rows = max(BATCH_ROWS, key=lambda size: self.measure(share, size).pairs_per_s)

    def measure(self, seconds: float, batch_rows: int | None = None) -> Pass:
        """Whole batches spread evenly over the lengths, for about ``seconds``."""
        batches = self._batches[batch_rows or self.batch_rows]
        # Steps of about a golden share of all batches visit short and long ones alike: a part of a pass is fair.
        stride = max(1, round(len(batches) * 0.618))
        while math.gcd(stride, len(batches)) != 1:
            stride += 1
        pairs = tokens = position = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds or pairs == 0:
            feeds = batches[position]
            self._bare.run(feeds)
            pairs += len(feeds["input_ids"])
            tokens += int(feeds["attention_mask"].sum())
            position = (position + stride) % len(batches)
        return Pass(pairs, tokens, time.perf_counter() - started)
