"""Writes a reward model as ONNX, and checks that it gives the torch model's logits."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import structlog
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,
    RuntimeException,
)
from tokenizers import Tokenizer

from rewardloop.formats.graphs.inputs import GraphInputs, as_taken
from rewardloop.formats.store import MODEL, TOKENIZER, TORCH
from rewardloop.formats.text import Encoded, Format
from rewardloop.process.mapped_pages import drop_read_pages, dropping_read_pages
from rewardloop_trainer.export.adapter import AdaptedSession
from rewardloop_trainer.export.errors import NoAdapterInputs, ParityError
from rewardloop_trainer.export.feeds import by_prompt, decoder_feeds, encoder_feeds, shared_feeds, tree_feeds
from rewardloop_trainer.export.graph import fill, graph_of
from rewardloop_trainer.export.weights import Watch, load_graph, outside_of, write_graph
from rewardloop_trainer.reward.examples import collate
from rewardloop_trainer.reward.model import RewardModel

log = structlog.get_logger()

PARITY_TOLERANCE = 1e-4
_ORT_ERROR = 3
_TREES = 4  # tree rows of one batch


class Runs(Protocol):
    """The part of an ONNX Runtime session that the check needs."""

    def run(self, output_names: Sequence[str] | None, inputs: GraphInputs) -> Sequence[Any]: ...

    def get_inputs(self) -> Sequence[Any]: ...


def export_reward(
    model: RewardModel,
    tokenizer: Tokenizer,
    text_format: Format,
    out_dir: Path,
    parent: Path | None = None,
    adapters: Sequence[str] = (),
    watch: Watch | None = None,
) -> None:
    """Write model.onnx, tokenizer.json and torch/ into ``out_dir``, as a reward version holds them.

    Args:
        model: A model whose adapters are merged.
        tokenizer: Its tokenizer.
        text_format: Its text layout.
        out_dir: The directory to write.
        parent: Directory of a version, normally the one that training started from. Its graph is reused if it is of the
            same architecture.
        adapters: Paths in the trunk of the layers that get adapter inputs. A graph that cannot have them is written
            without them, with a warning.
        watch: Called with the bytes of a large graph's weights that are written, and that there are.

    Raises:
        ValueError: If the model has adapters that are not merged.
        ExportFailed: If the architecture cannot be exported; other exceptions come from torch's exporter.
    """
    model.eval()
    out_dir.mkdir(parents=True, exist_ok=True)
    torch_dir = out_dir / TORCH
    torch_dir.mkdir(exist_ok=True)
    model.save(torch_dir)
    drop_read_pages()
    tokenizer.save(str(out_dir / TOKENIZER))
    graph = load_graph(parent / MODEL) if parent is not None else None
    if graph is None or not fill(graph, model, text_format.segment_ids, adapters):
        try:
            graph = graph_of(model, text_format.segment_ids, adapters)
        except NoAdapterInputs as error:
            log.warning("the graph is exported without adapter inputs", reason=str(error))
            graph = graph_of(model, text_format.segment_ids)
    write_graph(graph, out_dir / MODEL, watch)


def parity(
    onnx_path: Path,
    model: RewardModel,
    sequences: Sequence[Encoded],
    pad: int,
    batch_rows: int = 16,
    adapter: Path | None = None,
) -> float:
    """Largest absolute difference of a logit between ONNX in batches and torch on each sequence alone.

    Torch reads each sequence without padding, so the figure also shows that padding and other rows change nothing. A
    decoder is run a second time with the sequences of one prompt in one tree row, and a third time over the keys and
    values of the prompt.

    Args:
        onnx_path: The graph's file.
        model: The torch model; for a delta, the trunk with its adapters on.
        sequences: Sequences of mixed length.
        pad: Token id of padding.
        batch_rows: Rows of a batch.
        adapter: A delta's adapter file, which ONNX runs with.

    Returns:
        The difference; infinite if ONNX gives a logit that is not finite.
    """
    return logit_difference(
        onnx_path, torch_logits(model, sequences, pad), sequences, pad, batch_rows=batch_rows, adapter=adapter
    )


def torch_logits(model: RewardModel, sequences: Sequence[Encoded], pad: int) -> npt.NDArray[np.float32]:
    """The torch model's logits (n, k), of each sequence alone."""
    model.eval()
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = torch.cat([model(*collate([s], pad)) for s in sequences]).numpy()
    return logits


def logit_difference(
    onnx_path: Path,
    expected: npt.NDArray[np.float32],
    sequences: Sequence[Encoded],
    pad: int,
    *,
    batch_rows: int = 16,
    adapter: Path | None = None,
) -> float:
    """Return `parity` with logits that were computed before, so that the torch model need not be in memory as well.

    Args:
        onnx_path: The graph's file.
        expected: `torch_logits` of the sequences.
        sequences: The sequences.
        pad: Token id of padding.
        batch_rows: Rows of a batch.
        adapter: A delta's adapter file, which ONNX runs with.

    Raises:
        ParityError: If ONNX Runtime cannot run the graph.
    """
    try:
        return _worst(open_session(onnx_path, adapter), expected, sequences, pad, batch_rows)
    except (RuntimeException, Fail, NotImplemented, InvalidGraph, InvalidArgument) as error:
        raise ParityError(f"ONNX Runtime cannot run the graph: {error}") from error


def _worst(
    session: Runs, expected: npt.NDArray[np.float32], sequences: Sequence[Encoded], pad: int, batch_rows: int
) -> float:
    worst = 0.0
    for start in range(0, len(sequences), batch_rows):
        found = run_session(session, sequences[start : start + batch_rows], pad)
        worst = max(worst, _difference(found, expected[start : start + batch_rows]))
    if any(i.name == "ends" for i in session.get_inputs()):
        groups = by_prompt(sequences)
        trees = [group[start : start + batch_rows] for group in groups for start in range(0, len(group), batch_rows)]
        for start in range(0, len(trees), _TREES):
            batch = trees[start : start + _TREES]
            found = run_trees(session, [[sequences[i] for i in tree] for tree in batch], pad)
            worst = max(worst, _difference(found, expected[[i for tree in batch for i in tree]]))
        for tree in trees if shares_prompts(session) else ():
            group = [sequences[i] for i in tree]
            if any(len(sequence.ids) > sequence.prompt_tokens for sequence in group):
                worst = max(worst, _difference(run_shared(session, group, pad), expected[tree]))
    return worst


def shares_prompts(session: Runs) -> bool:
    """Whether a graph can attend to the prompt's keys and values in a row of several responses."""
    return any(i.name == "response_columns" for i in session.get_inputs())


def check_parity(onnx_path: Path, model: RewardModel, sequences: Sequence[Encoded], pad: int) -> float:
    """Return `parity`. Raises `ParityError` as `require_parity` does."""
    difference = parity(onnx_path, model, sequences, pad)
    shift = 0.0 if difference <= PARITY_TOLERANCE else padding_shift(model, sequences, pad)
    return require_parity(difference, shift)


def require_parity(difference: float, shift: float) -> float:
    """Return the difference of logits.

    Args:
        difference: From `logit_difference`.
        shift: From `padding_shift` of the torch model.

    Raises:
        ParityError: If the difference is above `PARITY_TOLERANCE`. The message says whether the model itself is at
            fault.
    """
    if difference <= PARITY_TOLERANCE:
        return difference
    if not shift <= PARITY_TOLERANCE:
        raise ParityError(
            f"a sequence beside longer ones, and so with padding, scores up to {shift:.2g} from the same one alone: "
            "the model does so in transformers itself, and requests are scored in batches: take another family"
        )
    raise ParityError(f"ONNX logits differ from torch by {difference:.3g}, above {PARITY_TOLERANCE:g}")


def padding_shift(model: RewardModel, sequences: Sequence[Encoded], pad: int) -> float:
    """Largest absolute difference of a torch model's logits between sequences in one padded batch and each alone.

    It is 0 for a decoder, whose tokens do not see the padding after them.
    """
    if model.is_decoder:
        return 0.0
    with torch.inference_mode():
        padded = model(*collate(sequences, pad)).numpy()
    return _difference(padded, torch_logits(model, sequences, pad))


def run_session(session: Runs, sequences: Sequence[Encoded], pad: int) -> npt.NDArray[np.float32]:
    """Logits (n, k) of one padded batch."""
    logits: npt.NDArray[np.float32] = session.run(None, graph_feeds(session, sequences, pad))[0]
    return logits


def graph_feeds(session: Runs, sequences: Sequence[Encoded], pad: int) -> GraphInputs:
    """The inputs of one padded batch, one sequence a row, as the session's graph takes them."""
    is_decoder = any(i.name == "ends" for i in session.get_inputs())
    return _given(session, decoder_feeds(sequences, pad)) if is_decoder else encoder_feeds(sequences, pad)


def run_trees(session: Runs, groups: Sequence[Sequence[Encoded]], pad: int) -> npt.NDArray[np.float32]:
    """A decoder's logits (n, k) of the groups' sequences in their order, with each group in one tree row."""
    logits: npt.NDArray[np.float32] = session.run(None, _given(session, tree_feeds(groups, pad)))[0]
    return logits


def run_shared(session: Runs, group: Sequence[Encoded], pad: int) -> npt.NDArray[np.float32]:
    """A decoder's logits (n, k) of a group's sequences in one row, whose prompt they share by its keys and values."""
    logits: npt.NDArray[np.float32] = session.run(None, shared_feeds(group, pad))[0]
    return logits


def _given(session: Runs, feeds: GraphInputs) -> GraphInputs:
    """A decoder's inputs as the graph takes them, which may be of an earlier export."""
    return as_taken(feeds, {i.name for i in session.get_inputs()})


def _difference(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max()) if np.isfinite(found).all() else float("inf")


def open_session(
    onnx_path: Path, adapter: Path | None = None, *, weights: Path | None = None, threads: int | None = None
) -> Runs:
    """Open an ONNX Runtime session on the CPU.

    Args:
        onnx_path: The graph's file.
        adapter: A delta's adapter file, which the session runs with.
        weights: The file that holds a large graph's weights, by default the one beside the graph.
        threads: Threads of a run, by default as many as torch has.
    """
    weights = outside_of(onnx_path) if weights is None else weights
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = _ORT_ERROR  # it warns of each adapter input
    skipped = []
    if weights.exists():
        # A large graph runs a few times only. Its weights stay where they are mapped, and are not copied into other
        # layouts and types.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        skipped.append("ConstantFolding")
    session = onnxruntime.InferenceSession(
        str(onnx_path), options, providers=["CPUExecutionProvider"], disabled_optimizers=skipped
    )
    runs: Runs = session if adapter is None else AdaptedSession(session, adapter)
    return _Mapped(runs, weights) if skipped else runs


def open_changed(
    graph: onnx.ModelProto, path: Path, adapter: Path | None = None, *, threads: int | None = None
) -> Runs:
    """Open a session as `open_session` does, of a graph that was read from ``path`` and then changed."""
    # Written beside the graph, because that is where its external data are looked for.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".changed-", suffix=".onnx") as file:
        file.write(graph.SerializeToString())
        file.flush()
        return open_session(Path(file.name), adapter, weights=outside_of(path), threads=threads)


class _Mapped:
    """A session of a large graph, whose weights do not stay in memory after they were used."""

    def __init__(self, session: Runs, weights: Path) -> None:
        self._session = session
        self._weights = weights

    def run(self, output_names: Sequence[str] | None, inputs: GraphInputs) -> Sequence[Any]:
        with dropping_read_pages(self._weights):
            return self._session.run(output_names, inputs)

    def get_inputs(self) -> Sequence[Any]:
        return self._session.get_inputs()
