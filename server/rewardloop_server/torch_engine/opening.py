"""Opens versions for the torch engine: reads their torch models, and proves them by their graphs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import structlog
import torch

from rewardloop.formats.store import TORCH, Manifest
from rewardloop.formats.text_format import read_text_format
from rewardloop_reward.delta import read_factors
from rewardloop_reward.model import RewardNetwork
from rewardloop_server.calls.errors import NotLoadable, told
from rewardloop_server.device.choose import Device
from rewardloop_server.guard.watch import Work
from rewardloop_server.loading.limits import LoadGuard
from rewardloop_server.loading.opened import OpenGraph
from rewardloop_server.scoring.engine import Runner
from rewardloop_server.scoring.layout import Signature
from rewardloop_server.scoring.plan import ANY_SHAPE, Shapes
from rewardloop_server.torch_engine.device import torch_devices
from rewardloop_server.torch_engine.network import Network, Trunk
from rewardloop_server.torch_engine.prefixes import Prefixes
from rewardloop_server.torch_engine.proof import TOLERANCE, prove
from rewardloop_server.torch_engine.runner import TorchRunner

log = structlog.get_logger()

# Another one could name a model elsewhere, as adapter_config.json does.
_OF_A_MODEL = re.compile(
    r"(config|generation_config|model\.safetensors\.index)\.json|(model|model-\d+-of-\d+|heads|lora)\.safetensors"
)


class OpenTorch:
    """A version's torch model at each place, proven by its graph; see `rewardloop_server.loading.opened.Opened`.

    On a CPU it computes in float32, and on a GPU in the precision of the version.

    Args:
        manifest: The version's manifest; its files were checked.
        directory: Its files. They must stay, because deltas over it are proven by its graph.
        device: Where it runs.
        guard: Stops an opening that does not end.
        prefixes: Keeps prompts between runs of versions that serve; None: nothing is kept.

    Raises:
        NotLoadable: The version has no torch model or an unknown precision, or its logits are not those of its graph.
    """

    def __init__(
        self,
        manifest: Manifest,
        directory: Path,
        device: Device,
        guard: LoadGuard,
        prefixes: Prefixes | None = None,
    ) -> None:
        where = f"{manifest.model} {manifest.version} does not load"
        if manifest.precision not in TOLERANCE:
            raise NotLoadable(f"{where}: the torch engine does not run {manifest.precision}; --engine onnx does")
        _check_files(manifest, where)
        self._directory, self._device, self._prefixes = directory, device, prefixes
        self._format = read_text_format(manifest.text_format)
        with _refusing(where), _opening(guard):
            network = RewardNetwork.load(directory / TORCH)
            dtype = torch.float32 if device.kind == "cpu" else getattr(torch, manifest.precision)
            places = torch_devices(device)
            self._trunks = [Trunk(copy.deepcopy(network), place, dtype) for place in places[1:]]
            self._trunks.insert(0, Trunk(network, places[0], dtype))
        if self._trunks[0].network.is_decoder:
            self._signature = Signature.of_decoder(shares_prompts=self._trunks[0].shares_prompts)
        else:
            self._signature = Signature.of_encoder(takes_segments=bool(self._format.segment_ids))
        self._prove(manifest, None, self.trial(), guard)

    def trial(self) -> TorchRunner:
        """Return what runs the version while it is tried; as of `Opened`."""
        return self._runner([Network.whole(trunk) for trunk in self._trunks], ANY_SHAPE, None)

    def runner(self, shapes: Shapes) -> TorchRunner:
        """Return what runs the version itself; as of `Opened`."""
        return self._runner([Network.whole(trunk) for trunk in self._trunks], shapes, self._prefixes)

    def _runner(self, networks: Sequence[Network], shapes: Shapes, prefixes: Prefixes | None) -> TorchRunner:
        return TorchRunner(networks, self._signature, self._device, shapes, prefixes)

    def delta(self, manifest: Manifest, directory: Path, shapes: Shapes, guard: LoadGuard) -> TorchRunner:
        """Return what runs a delta over it, proven by the trunk's graph with its adapter; as of `Opened`."""
        with _refusing(f"{manifest.model} {manifest.version} does not load"), _opening(guard):
            factors = read_factors(directory / TORCH)
            networks = []
            for trunk in self._trunks:
                trunk.adapted.know(factors)
                here = {path: (a.to(trunk.device), b.to(trunk.device)) for path, (a, b) in factors.items()}
                heads = trunk.network.with_heads(directory / TORCH).requires_grad_(False).to(trunk.device)
                networks.append(Network(trunk, heads, here))
        self._prove(manifest, directory, self._runner(networks, ANY_SHAPE, None), guard)
        return self._runner(networks, shapes, self._prefixes)

    def _prove(self, manifest: Manifest, delta: Path | None, found: Runner, guard: LoadGuard) -> None:
        """Compare a runner with the graph, with the adapter of a delta whose directory this is. Raises NotLoadable."""
        cpu = replace(self._device, kind="cpu", threads=max(1, self._device.threads), streams=1, device_ids=(0,))
        graph = OpenGraph(manifest, self._directory, replace(cpu, spin=False, binds_adapters=False), guard)
        by_graph = graph.trial() if delta is None else graph.delta(manifest, delta, ANY_SHAPE, guard)
        trunk = self._trunks[0]
        vocabulary, is_loose = trunk.network.vocabulary, self._device.tf32 and self._device.kind != "cpu"
        with _refusing(f"{manifest.model} {manifest.version} does not load"), _opening(guard):
            difference = prove(manifest, self._format, by_graph, found, vocabulary, trunk.reach, loose=is_loose)
        log.info(
            "torch model proven by its graph",
            model=manifest.model,
            version=manifest.version,
            difference=float(f"{difference:.3g}"),
            precision=manifest.precision,
            shares_prompts=self._signature.shares_prompts,
        )


def _check_files(manifest: Manifest, where: str) -> None:
    """Raise NotLoadable unless the version holds a torch model, and nothing beside it that transformers would read."""
    held = [name.removeprefix(f"{TORCH}/") for name in manifest.files if name.startswith(f"{TORCH}/")]
    if not held:
        raise NotLoadable(f"{where}: it has no torch model beside its graph; --engine onnx runs the graph")
    if others := sorted(name for name in held if not _OF_A_MODEL.fullmatch(name)):
        raise NotLoadable(f"{where}: {TORCH}/{others[0]} is no file of a torch model")


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    try:
        yield
    except NotLoadable:
        raise
    except Exception as error:  # transformers, safetensors and torch raise many kinds for broken files
        raise NotLoadable(f"{where}: {told(error)}") from error


@contextmanager
def _opening(guard: LoadGuard) -> Iterator[None]:
    """Watch the block. Reading weights cannot be stopped, so that the process ends if that does not end."""
    with guard.watch.over(Work("opening", guard.version, guard.open_s, lambda: None)):
        yield
