"""What samples in the policy worker: torch in this process, or a vLLM server."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.process.secret_files import read_secret
from rewardloop_policy.policy_model import PolicyModel, choose_device, load_policy_model
from rewardloop_policy.policy_text import Answer, PolicyText
from rewardloop_policy.sample_batcher import SampleBatcher
from rewardloop_policy.sample_thread import Room
from rewardloop_policy.settings import PolicyWorkerSettings
from rewardloop_policy.speech import Speech
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.guard.watch import RunBounds, Watch
from rewardloop_server.observe.metrics import ServerMetrics

P = TypeVar("P", bound=PolicyText)
P_contra = TypeVar("P_contra", bound=PolicyText, contravariant=True)


class Sampling(Protocol[P_contra]):
    """Answers requests with loaded versions."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered now."""
        ...

    async def answer(
        self, policy: P_contra, request: SampleRequest, deadline: float | None, speech: Speech | None = None
    ) -> list[Answer]:
        """Return the request's candidates; see `SampleBatcher.answer`."""
        ...

    async def run(self) -> None:
        """Work until cancelled."""
        ...

    def set_gauges(self) -> None:
        """Set the queue's gauges."""
        ...

    def close(self) -> None:
        """Let go of threads and connections."""
        ...


@dataclass(frozen=True, slots=True)
class Backend(Generic[P]):
    """Loads versions and samples from them.

    Attributes:
        where: The device or the server, for the log.
        load: Loads a version, in a thread.
        sampling: Answers requests.
        background: What else runs beside it.
        is_stuck_at_end: Whether a thread does not end, so that the process must be ended.
    """

    where: str
    load: Callable[[Manifest, Path], P]
    sampling: Sampling[P]
    background: Sequence[Coroutine[Any, Any, None]] = ()
    is_stuck_at_end: Callable[[], bool] = lambda: False


def torch_backend(settings: PolicyWorkerSettings, metrics: ServerMetrics) -> Backend[PolicyModel]:
    """Sample in this process."""
    device = choose_device(settings.device)
    watch = Watch(settings.run_grace_s)
    batcher = SampleBatcher(
        room=Room(settings.max_batch_rows, settings.max_batch_tokens),
        max_queue_rows=settings.queue_rows,
        metrics=metrics,
        watch=watch,
        bounds=RunBounds(settings.run_limit_s, settings.run_limit_factor, settings.run_grace_s),
    )
    metrics.engine_stuck.labels(model="policy").set_function(lambda: float(batcher.is_stuck))
    load = functools.partial(load_policy_model, device=device)
    return Backend(str(device), load, batcher, [watch.run()], lambda: watch.has_work)


def vllm_backend(settings: PolicyWorkerSettings, store: ModelStore, metrics: ServerMetrics, prog: str) -> Backend[Any]:
    """Sample on a vLLM server. Raises SystemExit if a setting or the HTTP client is missing."""
    if find_spec("httpx2") is None:
        raise SystemExit(f"{prog}: --vllm-url needs an HTTP client: pip install 'rewardloop[vllm]'")
    # Imported here, because the HTTP client may not be installed.
    from rewardloop_policy.vllm_answers import VllmAnswers
    from rewardloop_policy.vllm_versions import VllmSettings, VllmVersions
    from rewardloop_sampling.vllm_client import VllmClient, VllmEndpoint

    assert settings.vllm_directory is not None  # the settings say so
    try:
        key = read_secret(settings.vllm_api_key_file)
    except OSError as error:
        raise SystemExit(f"{prog}: --vllm-api-key-file: {error}") from error
    rows = settings.max_batch_rows
    endpoint = VllmEndpoint(settings.vllm_url, api_key=key, parallel=rows + 4, timeout_s=settings.vllm_timeout_s)
    how = VllmSettings(
        settings.vllm_directory, settings.vllm_max_lora_rank, settings.vllm_most_gap, settings.vllm_check
    )
    versions = VllmVersions(VllmClient(endpoint), store, how)
    answers = VllmAnswers(endpoint, versions, max_rows=rows, max_queue_rows=settings.queue_rows, metrics=metrics)
    return Backend(endpoint.address, versions.load, answers)
