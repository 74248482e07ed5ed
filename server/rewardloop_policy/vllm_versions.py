"""Puts versions of the policy on a vLLM server: as the model that it was started with, or as an adapter on it.

`policy-7` on the server is version 7 as a model of its own (`--served-model-name policy-7`). `policy-8-DIGEST-on-7` is
version 8 as an adapter on it, which this process writes from the difference of both versions' weights. A version serves
only if the server gives its tokens the log-probabilities that torch gives them here.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog
import torch
from torch.nn.functional import log_softmax
from transformers import AutoConfig, GenerationConfig

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Encoder, Turn
from rewardloop_policy.low_rank import NoAdapter, write_difference
from rewardloop_policy.policy_text import PolicyText, read_encoder
from rewardloop_sampling.generation_rules import GenerationRules, UnsupportedGeneration
from rewardloop_sampling.loading import load_served, most_positions
from rewardloop_sampling.sampling import end_ids
from rewardloop_sampling.vllm_client import Asked, Completed, Served, VllmClient, VllmError, VllmUnreachable
from rewardloop_sampling.vllm_probe import PROBE_TEMPERATURE, PROBE_TOKENS, Probe
from rewardloop_sampling.vllm_rules import vllm_fields
from rewardloop_server.calls.errors import NotLoadable, PolicyUnavailable

log = structlog.get_logger()

_MODEL = re.compile(r"policy-(\d+)")
_PROBES = ("Hello", "Hello, how are you?", "Count from one to ten.")
_DIGEST_DIGITS = 12


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How versions are put on a server.

    Attributes:
        directory: Where adapters are written. The server reads them from the same path.
        most_rank: Largest rank of an adapter, that of the server.
        most_gap: Largest mean difference of log-probabilities from torch's, in nats per token.
        is_checked: Whether versions are compared with torch.
    """

    directory: Path
    most_rank: int
    most_gap: float
    is_checked: bool = True


class VllmPolicy(PolicyText):
    """A version that a vLLM server serves.

    Attributes:
        name: What the server calls it.
        ends: Ids of which each ends an answer.
        fields: The rules of its generation config as fields of a request.
    """

    def __init__(
        self, manifest: Manifest, encoder: Encoder, name: str, rules: GenerationRules, release: Callable[[str], None]
    ) -> None:
        super().__init__(manifest, encoder)
        self.name = name
        self.ends = rules.end_ids
        self.fields = vllm_fields(rules)
        self._release = release

    def close(self) -> None:
        """Let the server forget it."""
        self._release(self.name)


class VllmVersions:
    """The versions of this process on a server. Its methods but `release` block, and are for threads."""

    def __init__(self, client: VllmClient, store: ModelStore, settings: VllmSettings) -> None:
        self._client, self._store, self._settings = client, store, settings
        self._lock = threading.Lock()
        self._holds: Counter[str] = Counter()
        self._held: dict[str, VllmPolicy] = {}
        self._unloading = ThreadPoolExecutor(1, thread_name_prefix="vllm-unload")

    def load(self, manifest: Manifest, directory: Path) -> VllmPolicy:
        """Put a version on the server and check it.

        Raises:
            NotLoadable: The server cannot serve it.
            PolicyUnavailable: The server does not answer.
        """
        with _translated(manifest.version):
            served = self._client.served()
            generation: Any = _generation_config(directory)
            name, is_new = self._name(manifest, directory, served)
            lengths = [each.max_length for each in served if each.max_length]
            encoder = read_encoder(manifest, directory, most_positions(_config(directory)), *lengths)
            ends = end_ids(SimpleNamespace(generation_config=generation), encoder.format.ends)
            rules = GenerationRules.of(SimpleNamespace(generation_config=generation), ends)
            policy = VllmPolicy(manifest, encoder, name, rules, self.release)
            with self._lock:
                self._holds[name] += 1
                if is_new:
                    self._client.load(name, self._settings.directory / name)
            try:
                self._check(policy, directory)
            except BaseException:
                self.release(name)
                raise
            self._held[name] = policy
            log.info("version on vllm", version=manifest.version, name=name, server=self._client.endpoint.address)
            return policy

    def put_back(self, policy: VllmPolicy) -> None:
        """Load a version that the server has lost. Raises NotLoadable or PolicyUnavailable."""
        with _translated(policy.manifest.version):
            directory = self._store.fetch("policy", policy.manifest.version)
            name, is_new = self._name(policy.manifest, directory, self._client.served())
            with self._lock:
                if name != policy.name:  # the server was started anew on another version
                    self._holds[name] += 1
                    self._holds[policy.name] -= 1
                    self._held.pop(policy.name, None)
                    policy.name, self._held[name] = name, policy
                if is_new:
                    log.warning("vllm lost a version, which is loaded again", name=name)
                    self._client.load(name, self._settings.directory / name)

    def put_all_back(self) -> None:
        """Load and check what this process serves, on a server that was away. Raises as `put_back` does."""
        for policy in list(self._held.values()):
            self.put_back(policy)
            with _translated(policy.manifest.version):
                self._check(policy, self._store.fetch("policy", policy.manifest.version))

    def release(self, name: str) -> None:
        """Unload an adapter that nothing here uses any more. Returns at once."""
        self._unloading.submit(self._unload, name)

    def close(self) -> None:
        """Disconnect. What is loaded stays, because other processes may use it."""
        self._unloading.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _unload(self, name: str) -> None:
        with self._lock:
            self._holds[name] -= 1
            if self._holds[name] > 0:
                return
            self._held.pop(name, None)
            if _MODEL.fullmatch(name):
                return
            try:
                self._client.unload(name)
            except VllmError as error:
                log.warning("an adapter stays on vllm", name=name, error=str(error))

    def _name(self, manifest: Manifest, directory: Path, served: Sequence[Served]) -> tuple[str, bool]:
        """Return the version's name on the server, and whether it must be loaded under it.

        Writes the adapter, if it takes one.
        """
        models = [each.name for each in served if not each.is_adapter and _MODEL.fullmatch(each.name)]
        if (own := f"policy-{manifest.version}") in models:
            return own, False
        if not models:
            raise NotLoadable(
                f"{self._client.endpoint.address} serves no version of the policy: start it on a version's directory "
                "with --served-model-name policy-VERSION"
            )
        base = models[0].removeprefix("policy-")
        adapter = f"{own}-{manifest.digest[:_DIGEST_DIGITS]}-on-{base}"
        if adapter in {each.name for each in served}:
            return adapter, False
        target = self._settings.directory / adapter
        if target.is_dir():
            return adapter, True
        try:
            rank = write_difference(self._store.fetch("policy", base), directory, target, self._settings.most_rank)
        except NoAdapter as error:
            raise NotLoadable(
                f"policy {manifest.version} is no adapter on policy {base}, which vLLM was started with: {error}. "
                f"Start vLLM on version {manifest.version}"
            ) from error
        return (adapter, True) if rank else (models[0], False)

    @torch.inference_mode()
    def _check(self, policy: VllmPolicy, directory: Path) -> None:
        """Compare the log-probabilities of sampled tokens with torch's. Raises VllmError."""
        if not self._settings.is_checked:
            return
        reported, said = list[float](), list[tuple[list[int], Completed]]()
        room = max(1, min(PROBE_TOKENS, policy.encoder.max_length // 2))
        for seed, text in enumerate(_PROBES):
            prompt = policy.encoder.fit_prompt((Turn("user", text),), policy.encoder.max_length - room).ids
            asked = Asked(policy.name, prompt, policy.ends, 1, room, PROBE_TEMPERATURE, 1.0, seed, {})
            for done in self._client.complete(asked):
                said.append((prompt, done))
                reported += done.logprobs
        model = load_served(directory, torch.device("cpu"))
        processed, raw = ([p for prompt, done in said for p in _scored(model, prompt, done.ids, t)] for t in _KINDS)
        probe = Probe(reported, processed, raw)
        log.info("vllm compared with torch", name=policy.name, gap_nats=round(probe.gap, 6), tokens=len(reported))
        probe.check(self._client.endpoint.address, self._settings.most_gap)


_KINDS = (PROBE_TEMPERATURE, 1.0)


def _scored(model: Any, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> list[float]:
    """Return the log-probability of each id, in nats."""
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
    found: list[float] = log_softmax(logits / temperature, -1)[range(len(ids)), list(ids)].tolist()
    return found


def _config(directory: Path) -> Any:
    return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _generation_config(directory: Path) -> Any:
    if (directory / "generation_config.json").exists():
        return GenerationConfig.from_pretrained(directory, local_files_only=True)
    return GenerationConfig.from_model_config(_config(directory))


@contextmanager
def _translated(version: str) -> Iterator[None]:
    """Raise errors of the server, and of what vLLM cannot do, as those that callers see."""
    try:
        yield
    except VllmUnreachable as error:
        raise PolicyUnavailable(str(error)) from error
    except (VllmError, UnsupportedGeneration) as error:
        raise NotLoadable(f"policy {version} is not served: {error}") from error
