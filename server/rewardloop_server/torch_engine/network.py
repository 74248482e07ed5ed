"""Computes the logits of a run by a version's torch model at one place: the CPU, or one GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from rewardloop.formats.graphs.inputs import GraphInputs, mask_of
from rewardloop_reward.decoder_rows import reach, states_at, windows
from rewardloop_reward.model import RewardNetwork
from rewardloop_server.torch_engine.adapters import AdaptedLayers, Factors
from rewardloop_server.torch_engine.attention import NAME, Responses, Way, attending, register
from rewardloop_server.torch_engine.prefixes import Prefix


class Stopped(Exception):
    """Raised in a run that was told to stop."""


@dataclass(frozen=True, slots=True)
class _Present:
    """What the layers must know of the run of this thread: its adapter, and what raises Stopped if it is to stop."""

    factors: Factors
    check: Callable[[], None]


_NO_FACTORS: Factors = {}
_PRESENT: ContextVar[_Present | None] = ContextVar("present", default=None)


class Trunk:
    """A trunk at one place, which the versions over it share.

    Args:
        network: A whole version, on the CPU in float32. It is changed, and must not be used elsewhere.
        device: The place.
        dtype: The type in which the trunk computes. Heads, and weights of words and phrases, compute in float32.
    """

    def __init__(self, network: RewardNetwork, device: torch.device, dtype: torch.dtype) -> None:
        network.eval().requires_grad_(False).to(device)
        network.trunk.to(dtype)
        if network.neck is not None and not network.is_decoder:
            network.neck.to(dtype)  # the classifier reads the trunk's states itself
        self.network = network
        self.device = device
        self.windows = _attends_itself(network)
        self.adapted = AdaptedLayers(network.trunk, _factors)
        for module in network.trunk.modules():
            if isinstance(module, nn.ModuleList):
                for layer in module:
                    layer.register_forward_pre_hook(_check)

    @property
    def shares_prompts(self) -> bool:
        """Whether the responses of a tree row may attend to the prompt's keys and values."""
        return self.windows is not None

    @property
    def reach(self) -> float:
        """The tokens that the narrowest window of a decoder's layers spans; infinite without windows."""
        span = reach(self.network.config) if self.network.is_decoder else None
        return math.inf if span is None else span


@dataclass(frozen=True, slots=True)
class Network:
    """A version at one place.

    Attributes:
        trunk: What it shares with other versions.
        heads: Its own heads over the trunk.
        factors: Its adapter; empty for a version that is no delta.
    """

    trunk: Trunk
    heads: RewardNetwork
    factors: Factors

    @classmethod
    def whole(cls, trunk: Trunk) -> Network:
        """Return the version that brought the trunk."""
        return cls(trunk, trunk.network, _NO_FACTORS)

    def logits(self, inputs: GraphInputs, check: Callable[[], None]) -> Tensor:
        """Return the logits (n, k), float32, on the place's device.

        Args:
            inputs: The arrays of a run, as the version's graph takes them.
            check: Called before each layer; it raises Stopped if the run is to stop.
        """
        given = {name: torch.from_numpy(array).to(self.trunk.device) for name, array in inputs.items()}
        with torch.inference_mode(), _present(_Present(self.factors, check)):
            if self.heads.is_decoder:
                return self._of_decoder(given, inputs)
            return cast(Tensor, self.heads(**given)).float()

    @property
    def keeps_prompts(self) -> bool:
        """Whether `behind` and `kept` may be asked: responses attend to keys and values, and nothing reads a mask."""
        return self.trunk.shares_prompts and not self.heads.needs_mask

    def kept(self, inputs: GraphInputs, check: Callable[[], None]) -> tuple[Tensor, Prefix]:
        """Return the logits of a tree row over its prompt, as `logits` does, and what the prompt leaves behind."""
        ids, positions, columns, places, ends = self._shared(inputs)
        prompt = ids.shape[1] - places.shape[0]
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        way = Way(self._windows, Responses(prompt, columns, places), kept=kept)
        with torch.inference_mode(), _present(_Present(self.factors, check)):
            states = _states(self.heads.trunk, ids, positions, way)
            layers = tuple(kept[layer] for layer in range(len(self._windows)))
            prefix = Prefix(layers, states[0, prompt - 1 : prompt].clone())
            return self.heads.logits_at_ends(states.float(), ids, positions, None, ends).float(), prefix

    def behind(self, prefix: Prefix, inputs: GraphInputs, check: Callable[[], None]) -> Tensor:
        """Return the logits of a tree row, as `logits` does, whose prompt was computed before."""
        ids, positions, columns, places, ends = self._shared(inputs)
        prompt = ids.shape[1] - places.shape[0]
        way = Way(self._windows, Responses(0, columns - prompt, places), past=prefix.layers)
        own, positions = ids[:, prompt:], positions[:, prompt:]
        with torch.inference_mode(), _present(_Present(self.factors, check)):
            states = torch.cat([prefix.last[None], _states(self.heads.trunk, own, positions, way)], dim=1)
            # Column 0 is the prompt's last token, with which an empty response ends.
            return self.heads.logits_at_ends(states.float(), own, positions, None, ends - (prompt - 1)).float()

    @property
    def _windows(self) -> tuple[int | None, ...]:
        assert self.trunk.windows is not None
        return self.trunk.windows

    def _shared(self, inputs: GraphInputs) -> tuple[Tensor, ...]:
        names = ("input_ids", "position_ids", "response_columns", "response_places", "ends")
        return tuple(torch.from_numpy(inputs[name]).to(self.trunk.device) for name in names)

    def _of_decoder(self, given: dict[str, Tensor], inputs: GraphInputs) -> Tensor:
        ids, positions, columns = given["input_ids"], given["position_ids"], given.get("response_columns")
        is_shared = columns is not None and columns.shape[0] > 0
        is_plain = inputs["branches"].shape[1] == 1
        attends = self.trunk.windows is not None and (is_shared or is_plain)
        mask = None
        if self.heads.needs_mask or not attends:
            mask = torch.from_numpy(mask_of(inputs["branches"], ids.shape[1])).to(self.trunk.device)
        read = self.heads.token_ids(ids)
        if not attends:
            assert mask is not None
            states = states_at(self.heads.trunk, read, positions, mask)
        else:
            assert self.trunk.windows is not None
            responses = None
            if is_shared:
                assert columns is not None
                places = given["response_places"]
                responses = Responses(ids.shape[1] - places.shape[0], columns, places)
            states = _states(self.heads.trunk, read, positions, Way(self.trunk.windows, responses))
        return self.heads.logits_at_ends(states.float(), ids, positions, mask, given["ends"]).float()


def _states(trunk: nn.Module, ids: Tensor, positions: Tensor, way: Way) -> Tensor:
    """Return the last hidden states (rows, length, d) of a decoder that attends this way."""
    with attending(way):
        return cast(Tensor, trunk(input_ids=ids, position_ids=positions).last_hidden_state)


def _attends_itself(network: RewardNetwork) -> tuple[int | None, ...] | None:
    """Let the trunk attend by `attention`. Returns the windows of a decoder's layers, None if it cannot.

    An architecture that has attention of its own, or whose layers do not say which they are, keeps what it has.
    """
    trunk = cast(Any, network.trunk)
    before = trunk.config._attn_implementation
    if before != "sdpa" or not trunk._can_set_attn_implementation():
        return None
    spans = windows(trunk.config) if network.is_decoder else ()
    if spans is None:
        return None
    register()
    trunk.set_attn_implementation(NAME)
    if not network.is_decoder:
        return None
    way = Way(spans)
    ids = torch.zeros((1, 2), dtype=torch.long, device=network.heads.weight.device)
    try:
        with torch.inference_mode():
            _states(trunk, ids, torch.arange(2, device=ids.device)[None], way)
    except (AttributeError, TypeError):  # its layers have no numbers, or it takes no positions
        way.layers.clear()
    if way.layers == set(range(len(spans))):
        return spans
    trunk.set_attn_implementation(before)
    return None


@contextmanager
def _present(run: _Present) -> Iterator[None]:
    token = _PRESENT.set(run)
    try:
        yield
    finally:
        _PRESENT.reset(token)


def _factors() -> Factors:
    run = _PRESENT.get()
    return _NO_FACTORS if run is None else run.factors


def _check(module: nn.Module, given: Any) -> None:
    if (run := _PRESENT.get()) is not None:
        run.check()
