"""Opens the sampler that the settings of a run name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rewardloop.formats.text import Encoder
from rewardloop.process.secret_files import read_secret
from rewardloop_trainer.policy.online.sampler import Sampler, SamplerError
from rewardloop_trainer.policy.online_settings import OnlineSettings, VllmSettings


@contextmanager
def open_sampler(
    settings: OnlineSettings, model: Any, encoder: Encoder, directory: Path | None
) -> Iterator[Sampler | None]:
    """Open the sampler that the settings name, and close it at the end.

    Args:
        settings: The settings of the loop.
        model: The causal LM that `train_online` is given.
        encoder: The model's tokenizer and text layout.
        directory: Where files for the sampler go if the settings name no directory.

    Yields:
        The sampler; None for the one of `train_online` itself.

    Raises:
        SamplerError: If the sampler's libraries are not installed, or there is no directory.
    """
    if settings.sampler == "local":
        yield None
        return
    if find_spec("httpx2") is None:
        raise SamplerError("online.sampler vllm needs an HTTP client: pip install 'rewardloop[vllm]'")
    # Imported here, because the HTTP client may not be installed.
    from rewardloop_sampling.vllm_client import VllmEndpoint
    from rewardloop_trainer.policy.online.vllm_sampler import VllmSampler

    place = settings.vllm.directory or directory
    if place is None:
        raise SamplerError("online.sampler vllm writes adapters for the server: set online.vllm.directory")
    vllm = settings.vllm
    endpoint = VllmEndpoint(vllm.url, vllm.name, _key(vllm), parallel=vllm.parallel, timeout_s=vllm.timeout_s)
    sampler = VllmSampler(endpoint, model, encoder, place, max_age_steps=0)
    try:
        yield sampler
    except BaseException:
        sampler.abandon()
        raise
    sampler.close()


def _key(vllm: VllmSettings) -> str:
    """Read the key to show to the server; "" without one. Raises `SamplerError`."""
    try:
        return read_secret(vllm.api_key_file)
    except OSError as error:
        raise SamplerError(f"online.vllm.api_key_file: {error}") from error
