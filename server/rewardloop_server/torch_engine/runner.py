"""Runs a version by torch in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.engine import Floats, OutOfMemory, lacks_memory
from rewardloop_server.scoring.layout import Feeds, Signature, lay_out
from rewardloop_server.scoring.plan import Limit, Run, Shapes, plan_runs
from rewardloop_server.torch_engine.network import Network, Stopped


class TorchCall:
    """The options of one run. Setting ``terminate`` stops it before its next layer."""

    def __init__(self) -> None:
        self.terminate = False

    def check(self) -> None:
        """Raise Stopped if the run was told to stop."""
        if self.terminate:
            raise Stopped("the run was told to stop")


class TorchRunner:
    """Runs a version at the places of a device; see `rewardloop_server.scoring.engine.Runner`.

    Args:
        networks: The version at each place.
        signature: What inputs it takes, which are those of its graph.
        device: Where it runs.
        shapes: Which runs suit the device.
    """

    is_elsewhere = False
    is_away = False

    def __init__(self, networks: Sequence[Network], signature: Signature, device: Device, shapes: Shapes) -> None:
        self.signature = signature
        self.places = device.names
        self._networks = tuple(networks)
        self._device = device
        self._shapes = shapes
        self._streams = threading.local()

    def plan(self, rows: Sequence[Encoded], cost: CostModel, limit: Limit) -> list[Run]:
        """Plan as for the version's graph; as of `Runner`."""
        trees, shares = self.signature.is_decoder, self.signature.shares_prompts
        return plan_runs(rows, cost, trees=trees, shares=shares, limit=limit, shapes=self._shapes)

    def lay_out(self, rows: Sequence[Encoded], run: Run, pad: int) -> Feeds:
        """Return arrays that the version's graph would take; as of `Runner`."""
        return lay_out(rows, run, self.signature, pad, shares_always=True)

    def options(self) -> TorchCall:
        """Return what stops one run; as of `Runner`."""
        return TorchCall()

    def persist(self, options: Any) -> None:
        """Do nothing: a device is always there."""

    def logits(self, feeds: Feeds, options: TorchCall, *, place: int, alone: bool) -> Floats:
        """Run the torch model; as of `Runner`."""
        network = self._networks[place]
        if self._device.kind == "cpu":
            # All threads of the process share this number. Runs at once want the same one.
            threads = self._device.threads if alone else max(1, self._device.threads // self._device.streams)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
        try:
            with self._stream(network.trunk.device):
                found: Floats = network.logits(feeds.inputs, options.check).cpu().numpy()
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) or lacks_memory(error):
                raise OutOfMemory(str(error)) from error
            raise
        return found

    def _stream(self, device: torch.device) -> Any:
        """Return the calling thread's own stream of a GPU, so that runs at once need not wait for each other."""
        if device.type == "cpu":
            return nullcontext()
        streams = self._streams.__dict__
        if str(device) not in streams:
            streams[str(device)] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(streams[str(device)])

    def close(self) -> None:
        """Let go of the networks. The trunk is freed with the last version over it."""
        self._networks = ()
