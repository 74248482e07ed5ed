"""What a load opens of a version that is no delta: what runs it, and what runs the deltas over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import onnxruntime as ort

from rewardloop.formats.store import ADAPTER, Manifest
from rewardloop_server.calls.errors import NotLoadable, told
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.limits import LoadGuard
from rewardloop_server.loading.opening import open_sessions
from rewardloop_server.scoring.adapter import ActiveAdapter, Adapter, BoundAdapter
from rewardloop_server.scoring.engine import GraphRunner, Runner
from rewardloop_server.scoring.plan import ANY_SHAPE, Shapes


class Opened(Protocol):
    """A version that is no delta, open at each place of the device."""

    def trial(self) -> Runner:
        """Return what runs the version while it is tried and timed, and keeps nothing from one run to the next."""

    def runner(self, shapes: Shapes) -> Runner:
        """Return what runs the version itself when it serves, for runs of these shapes."""

    def delta(self, manifest: Manifest, directory: Path, shapes: Shapes, guard: LoadGuard) -> Runner:
        """Return what runs a delta over it, whose files are in the directory and were checked. Raises NotLoadable."""


# Opens a version whose files are in the directory and were checked. Raises NotLoadable.
Opens: TypeAlias = Callable[[Manifest, Path, Device, LoadGuard], Opened]


class OpenGraph:
    """A version's graph, whose sessions its deltas share; see `Opened`.

    Args:
        manifest: The version's manifest; its files were checked.
        directory: Its files.
        device: Where it is opened.
        guard: Stops an opening that does not end.

    Raises:
        NotLoadable: The graph cannot be opened at one of the places, or takes other inputs.
    """

    def __init__(self, manifest: Manifest, directory: Path, device: Device, guard: LoadGuard) -> None:
        self._device = device
        self._sessions, self._signature = open_sessions(directory, device, guard)

    def trial(self) -> GraphRunner:
        """Return what runs the graph; as of `Opened`."""
        return self.runner(ANY_SHAPE)

    def runner(self, shapes: Shapes) -> GraphRunner:
        """Return what runs the graph; as of `Opened`."""
        return GraphRunner(self._sessions, self._signature, shapes=shapes)

    def delta(self, manifest: Manifest, directory: Path, shapes: Shapes, guard: LoadGuard) -> GraphRunner:
        """Return what runs the graph with the delta's adapter; as of `Opened`."""
        where = f"{manifest.model} {manifest.version}"
        adapter = _adapter(directory / ADAPTER, self._sessions[0].alone, self._device, where)
        return GraphRunner(self._sessions, self._signature, adapter, shapes)


def _adapter(path: Path, session: Any, device: Device, where: str) -> Adapter:
    """Load the adapter, and check its parameters against what the session's graph lets an adapter set."""
    adapter: Adapter
    try:
        file = ort.AdapterFormat.read_adapter(str(path))
        values = file.get_parameters()
        parameters = {name: (value.data_type(), value.shape()) for name, value in values.items()}
        if device.binds_adapters:
            adapter = BoundAdapter(values, device.memory, device.device_ids)
        else:
            adapter = ActiveAdapter(path)
    except Exception as error:  # ONNX Runtime raises bare Exceptions for a bad file
        raise NotLoadable(f"{where}: the adapter does not load: {told(error)}") from error
    settable = {i.name: (i.type, i.shape) for i in session.get_overridable_initializers()}
    if not parameters:
        raise NotLoadable(f"{where}: the adapter is empty")
    for name, (kind, shape) in parameters.items():
        if name not in settable:
            raise NotLoadable(f"{where}: the graph has no input {name!r} for the adapter to set")
        wanted_kind, wanted = settable[name]
        fits = len(shape) == len(wanted) and all(
            isinstance(want, str) or want is None or size == want for size, want in zip(shape, wanted, strict=True)
        )
        if kind != wanted_kind or not fits:
            raise NotLoadable(f"{where}: {name} is {kind} {shape}, the graph takes {wanted_kind} {wanted}")
    return adapter
