"""Checks the files of a version and opens its sessions, in the serving process and in the probe alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from tokenizers import Tokenizer

from rewardloop.formats.graphs.check import EndlessGraph, check_graph
from rewardloop.formats.graphs.fields import NotAGraph
from rewardloop.formats.store import MODEL, TOKENIZER, Manifest
from rewardloop.formats.text import Encoder
from rewardloop.formats.text_format import read_text_format
from rewardloop_server.calls.errors import NotLoadable, told
from rewardloop_server.device.choose import Device
from rewardloop_server.device.kinds import MOST_SCORES, ROW_MULTIPLE
from rewardloop_server.loading.bounds import check_bounds
from rewardloop_server.loading.graph_tables import Tables, read_tables
from rewardloop_server.loading.limits import LoadGuard
from rewardloop_server.scoring.engine import Sessions
from rewardloop_server.scoring.layout import Signature
from rewardloop_server.scoring.plan import Shapes


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of a version's graph and tokenizer found.

    Attributes:
        tables: How many ids and positions the graph has.
        highest: The highest id that a text can have.
    """

    tables: Tables
    highest: int


def check_files(manifest: Manifest, directory: Path, encoder: Encoder, *, allows_loops: bool) -> Checked:
    """Check the files of a version with a graph. It walks through the graph, and holds the interpreter's lock for that.

    Args:
        manifest: The version's manifest.
        directory: Its files, which the store has verified.
        encoder: Turns texts into the version's tokens.
        allows_loops: Take graphs with loops that nothing bounds.

    Raises:
        NotLoadable: A file cannot be read, or the texts can have tokens that the graph does not have.
        UnsafeVersion: The graph asks for foreign files or operators.
    """
    where = f"{manifest.model} {manifest.version}"
    try:
        check_graph(directory / MODEL, manifest.files, where, allows_loops=allows_loops)
        tables = read_tables(directory / MODEL)
    except EndlessGraph as error:
        raise NotLoadable(f"{where} does not load: {error}; --allow-loops takes it") from error
    except (NotAGraph, OSError) as error:
        raise NotLoadable(f"{where} does not load: {told(error)}") from error
    return Checked(tables, check_bounds(encoder, tables, where))


def read_encoder(manifest: Manifest, directory: Path) -> Encoder:
    """Return what turns texts into the version's tokens. Raises NotLoadable."""
    where = f"{manifest.model} {manifest.version} does not load"
    try:
        text_format = read_text_format(manifest.text_format)
    except (ValueError, TypeError, KeyError) as error:
        raise NotLoadable(f"{where}: its text format is not valid: {error}") from error
    try:
        tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
        return Encoder(tokenizer, text_format, manifest.max_length)
    except Exception as error:  # tokenizers raises bare Exceptions for a bad file
        raise NotLoadable(f"{where}: {told(error)}") from error


def open_sessions(directory: Path, device: Device, guard: LoadGuard) -> tuple[tuple[Sessions, ...], Signature]:
    """Open the sessions of a version whose files are in the directory and were checked, one place after the other.

    Returns:
        The sessions of each place, in the order of `Device.names`, and the inputs that the graph takes.

    Raises:
        NotLoadable: The graph cannot be opened at one of the places, or takes other inputs.
    """
    sessions = tuple(_opened(directory, each, guard) for each in device.each())
    try:
        return sessions, Signature.of(sessions[0].alone)
    except ValueError as error:
        raise NotLoadable(f"{guard.model} {guard.version}: {error}") from error


def _opened(directory: Path, device: Device, guard: LoadGuard) -> Sessions:
    """Open the sessions of one place."""
    (place,) = device.names
    where = f"{guard.model} {guard.version} does not load{'' if device.kind == 'cpu' else f' on {place}'}"

    def opened(threads: int) -> Any:
        options = _options(device, threads)
        with guard.opening(options):
            return ort.InferenceSession(
                directory / MODEL, options, list(device.providers), provider_options=device.provider_options
            )

    with _refusing(where):
        alone = opened(device.threads)
        # Streams of a CPU divide its threads, for which each needs a session. A GPU would hold the weights twice.
        beside = opened(device.threads // device.streams) if device.kind == "cpu" and device.streams > 1 else alone
    if (why := device.refusal(alone) or device.refusal(beside)) is not None:
        raise NotLoadable(f"{where}: {why}")
    return Sessions(place, alone, beside)


def run_shapes(manifest: Manifest, device: Device) -> Shapes:
    """Return which runs of a version suit the device."""
    return Shapes(ROW_MULTIPLE[device.kind], manifest.max_length, MOST_SCORES[device.kind])


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime raises bare Exceptions for a bad file
        raise NotLoadable(f"{where}: {told(error)}") from error


def _options(device: Device, threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if device.spin else "0")
    # An arena grows to the largest shape that was ever run, and after a swap two of them would be held.
    options.enable_cpu_mem_arena = device.kind != "cpu"
    options.log_severity_level = 3  # a lower level warns of each adapter parameter, because it is no constant
    return options
