"""run: an ONNX reward model on its device, and the thread that drives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import structlog
from tokenizers import Tokenizer

from rewardloop.formats.store import Calibration, Manifest
from rewardloop.formats.text import Encoded, Encoder, TextFormat
from rewardloop_server.errors import NotLoadable
from rewardloop_server.plan import plan_rows

log = structlog.get_logger()

Floats = npt.NDArray[np.float32]

# Shapes run once before a version serves: one short pair, a full batch, one of the greatest length.
_WARM_UP_ROWS = ((1, 16), (8, 64))


@dataclass(frozen=True, slots=True)
class Device:
    """Where sessions run. ``threads`` 0 is one a core."""

    kind: Literal["cpu", "cuda"]
    threads: int
    spin: bool


def choose_device(wanted: Literal["auto", "cpu", "cuda"], *, threads: int, spin: bool) -> Device:
    """CUDA where ONNX Runtime has it, unless the setting says otherwise; says in the log what it chose.

    Raises RuntimeError when CUDA is demanded and absent.
    """
    available = ort.get_available_providers()
    has_cuda = "CUDAExecutionProvider" in available
    if wanted == "cuda" and not has_cuda:
        raise RuntimeError(
            f"device is cuda, but this ONNX Runtime has only {', '.join(available)}: install rewardloop[gpu]"
        )
    kind: Literal["cpu", "cuda"] = "cuda" if has_cuda and wanted != "cpu" else "cpu"
    log.info("device chosen", device=kind, wanted=wanted, providers=available, onnxruntime=ort.__version__)
    return Device(kind, threads, spin)


class RewardModel:
    """One loaded, warm version: its session, its text encoder, its calibration.

    ``run`` is called from one thread at a time.
    """

    def __init__(self, manifest: Manifest, encoder: Encoder, session: ort.InferenceSession) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.calibration = manifest.calibration or Calibration()
        self._session = session
        self._is_decoder = any(i.name == "ends" for i in session.get_inputs())
        self._takes_segments = any(i.name == "token_type_ids" for i in session.get_inputs())

    def run(self, rows: Sequence[Encoded]) -> tuple[Floats, int]:
        """Raw logits ``(len(rows), heads)`` in the rows' order, and how many padded tokens were run."""
        logits = np.empty((len(rows), self.manifest.heads), dtype=np.float32)
        padded = 0
        for indices in plan_rows([len(row.ids) for row in rows]):
            feeds = self._lay_out([rows[i] for i in indices])
            padded += feeds["input_ids"].size
            logits[indices] = self._session.run(["logits"], feeds)[0]
        return logits, padded

    def warm(self) -> None:
        """Run the warm-up shapes. Raises NotLoadable when the graph does not give finite logits of the stated shape."""
        for count, length in (*_WARM_UP_ROWS, (1, self.manifest.max_length)):
            row = Encoded([self.encoder.format.pad] * min(length, self.manifest.max_length), None, truncated=False)
            logits, _ = self.run([row] * count)
            if not np.isfinite(logits).all():
                raise NotLoadable(f"reward {self.manifest.version} gives logits that are not finite")

    def close(self) -> None:
        """Free the session's memory now rather than at the next garbage collection."""
        del self._session

    def _lay_out(self, rows: Sequence[Encoded]) -> dict[str, npt.NDArray[Any]]:
        length = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), length), self.encoder.format.pad, dtype=np.int64)
        is_real = np.zeros((len(rows), length), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = row.ids
            is_real[i, : len(row.ids)] = 1
        if self._is_decoder:
            return {
                "input_ids": ids,
                "position_ids": np.repeat(np.arange(length)[None], len(rows), axis=0),
                "mask": np.tri(length, dtype=np.bool_)[None, None],
                "ends": np.arange(len(rows)) * length + is_real.sum(1) - 1,
            }
        feeds: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "attention_mask": is_real}
        if self._takes_segments:
            feeds["token_type_ids"] = segments = np.zeros_like(ids)
            for i, row in enumerate(rows):
                if row.token_type_ids is not None:
                    segments[i, : len(row.ids)] = row.token_type_ids
        return feeds


def load_reward_model(manifest: Manifest, directory: Path, device: Device) -> RewardModel:
    """Load and warm a version from its verified directory. Raises NotLoadable with what is wrong."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = device.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if device.spin else "0")
    # Arenas grow to the largest shapes ever run and would hold two versions' worth after a swap.
    options.enable_cpu_mem_arena = device.kind == "cuda"
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.kind == "cuda" else ["CPUExecutionProvider"]
    where = f"reward {manifest.version}"
    try:
        session = ort.InferenceSession(directory / "model.onnx", options, providers=providers)
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        text_format = TextFormat.from_json(manifest.text_format)
    except Exception as error:  # ONNX Runtime and tokenizers raise bare Exceptions for whatever is wrong with a file
        raise NotLoadable(f"{where} does not load: {error}") from error
    _check_signature(session, where)
    model = RewardModel(manifest, Encoder(tokenizer, text_format, manifest.max_length), session)
    try:
        model.warm()
    except NotLoadable:
        raise
    except Exception as error:  # as above
        raise NotLoadable(f"{where} does not run: {error}") from error
    return model


def _check_signature(session: Any, where: str) -> None:
    inputs = {i.name for i in session.get_inputs()}
    outputs = {o.name for o in session.get_outputs()}
    known = {"input_ids", "attention_mask", "token_type_ids"}
    is_decoder = inputs == {"input_ids", "position_ids", "mask", "ends"}
    if not (is_decoder or {"input_ids", "attention_mask"} <= inputs <= known) or "logits" not in outputs:
        raise NotLoadable(f"{where}: the graph takes {sorted(inputs)} and gives {sorted(outputs)}")
