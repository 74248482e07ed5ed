"""Runs a version by torch in this process."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from rewardloop.formats.graphs.inputs import GraphInputs, tree_rows, tree_tokens
from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.engine import Floats, OutOfMemory, lacks_memory
from rewardloop_server.scoring.layout import Feeds, Signature, lay_out
from rewardloop_server.scoring.plan import Limit, Run, Shapes, has_response, plan_runs
from rewardloop_server.torch_engine.network import Network, Stopped
from rewardloop_server.torch_engine.prefixes import LEAST_TOKENS, Prefixes


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

    With ``prefixes`` rows that are alone in their run are laid out over their prompt, and what the prompt leaves behind
    is kept. Then rows of a prompt that is kept have runs of their own.

    Args:
        networks: The version at each place.
        signature: What inputs it takes, which are those of its graph.
        device: Where it runs.
        shapes: Which runs suit the device.
        prefixes: Keeps prompts; None: nothing is kept between runs.
    """

    is_elsewhere = False
    is_away = False

    def __init__(
        self,
        networks: Sequence[Network],
        signature: Signature,
        device: Device,
        shapes: Shapes,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.signature = signature
        self.places = device.names
        self._networks = tuple(networks)
        self._device = device
        self._shapes = shapes
        self._streams = threading.local()
        self._prefixes = prefixes if self._networks[0].keeps_prompts else None
        self._version = -1 if self._prefixes is None else self._prefixes.enter()

    def plan(self, rows: Sequence[Encoded], cost: CostModel, limit: Limit) -> list[Run]:
        """Plan as for the version's graph; as of `Runner`."""
        known, others = self._by_prompts(rows)
        trees, shares = self.signature.is_decoder, self.signature.shares_prompts
        rest = [rows[i] for i in others]
        runs = plan_runs(rest, cost, trees=trees, shares=shares, limit=limit, shapes=self._shapes) if rest else []
        if not known:
            return runs
        runs = [replace(run, items=tuple(tuple(others[i] for i in item) for item in run.items)) for run in runs]
        runs += [run for members in known for run in runs_behind(rows, members, cost, limit, self._shapes)]
        return sorted(runs, key=lambda run: min(run.rows))

    def _by_prompts(self, rows: Sequence[Encoded]) -> tuple[list[list[int]], list[int]]:
        """Return the indices of the rows of each prompt that is kept, and those of all other rows."""
        if self._prefixes is None:
            return [], list(range(len(rows)))
        known: dict[bytes, list[int]] = {}
        others = []
        for i, row in enumerate(rows):
            prompt = _bytes(row.ids[: row.prompt_tokens])
            if row.prompt_tokens >= LEAST_TOKENS and has_response([row]) and self._prefixes.has(self._version, prompt):
                known.setdefault(prompt, []).append(i)
            else:
                others.append(i)
        return list(known.values()), others

    def lay_out(self, rows: Sequence[Encoded], run: Run, pad: int) -> Feeds:
        """Return arrays that the version's graph would take; as of `Runner`."""
        if self._prefixes is not None and len(run.items) == 1:
            group = [rows[i] for i in run.items[0]]
            if group[0].prompt_tokens >= LEAST_TOKENS and has_response(group):
                inputs = tree_rows([group], run.length, pad, shares_prompt=True)
                return Feeds(inputs, len(group), inputs["input_ids"].size, tree_tokens(group))
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
                found: Floats = self._logits(network, feeds.inputs, options, place)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) or lacks_memory(error):
                raise OutOfMemory(str(error)) from error
            raise
        return found

    def _logits(self, network: Network, inputs: GraphInputs, options: TorchCall, place: int) -> Floats:
        prompt = inputs["input_ids"].shape[1] - len(inputs.get("response_places", ()))
        is_shared = len(inputs.get("response_columns", ())) > 0 and prompt >= LEAST_TOKENS
        if self._prefixes is None or not is_shared:
            plain: Floats = network.logits(inputs, options.check).cpu().numpy()
            return plain
        ids = inputs["input_ids"][0, :prompt].tobytes()
        prefix = self._prefixes.look_up(self._version, place, ids)
        if prefix is not None:
            behind: Floats = network.behind(prefix, inputs, options.check).cpu().numpy()
            return behind
        logits, prefix = network.kept(inputs, options.check)
        found: Floats = logits.cpu().numpy()  # on a GPU this waits for the prompt's keys and values, too
        self._prefixes.keep(self._version, place, ids, prefix)
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
        """Let go of the networks and of kept prompts. The trunk is freed with the last version over it."""
        self._networks = ()
        if self._prefixes is not None:
            self._prefixes.leave(self._version)


def runs_behind(
    rows: Sequence[Encoded], members: Sequence[int], cost: CostModel, limit: Limit, shapes: Shapes
) -> list[Run]:
    """Return runs of rows whose prompt is kept, each of as many responses as the limit allows, at least one.

    Args:
        rows: All rows.
        members: The indices of those that begin with the prompt.
        cost: Estimates the seconds of the responses alone.
        limit: Bounds of one run.
        shapes: Which lengths suit the device.
    """
    prompt = rows[members[0]].prompt_tokens
    runs, taken, tokens, seconds = list[Run](), list[int](), 0, cost.fixed_s
    for i in members:
        size = len(rows[i].ids) - prompt
        row_s = cost.per_token_s * size + cost.per_token2_s * size * (prompt + size)
        if taken and (seconds + row_s > limit.seconds or prompt + tokens + size > limit.tokens):
            runs.append(Run((tuple(taken),), shapes.padded(prompt + tokens), seconds))
            taken, tokens, seconds = [], 0, cost.fixed_s
        taken.append(i)
        tokens, seconds = tokens + size, seconds + row_s
    return [*runs, Run((tuple(taken),), shapes.padded(prompt + tokens), seconds)]


def _bytes(ids: Sequence[int]) -> bytes:
    return array("q", ids).tobytes()
