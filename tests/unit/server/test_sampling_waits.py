"""How often sampling waits for the device: once a token. On a GPU each wait leaves it idle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tiny_policies import tiny_policy
from torch.utils._python_dispatch import TorchDispatchMode

from rewardloop_sampling.running_batch import sample
from rewardloop_sampling.sampling import SampleRequest

aten = torch.ops.aten
_READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)


class Waits(TorchDispatchMode):
    """Counts the operations that read values of tensors, which on a GPU wait until they are computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += func in _READS or by_mask
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, int], int]:
    counted = Waits()
    read: Any = torch.Tensor.tolist

    def tolist(tensor: torch.Tensor) -> Any:
        counted.count += 1
        return read(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def waits(model: Any, tokens: int) -> int:
        requests = [
            SampleRequest([3, 4, 5, 6, 7], 2, temperature=0.7, top_p=0.9, seed=1, max_new_tokens=tokens),
            SampleRequest([8], 1, temperature=0.0, max_new_tokens=tokens),
            SampleRequest([9, 10], 1, seed=2, max_new_tokens=tokens),
        ]
        before = counted.count
        with counted:
            sample(model, requests, end_ids=[], pad_id=0)
        return counted.count - before

    return waits


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2"])
def test_a_token_takes_one_wait(family: str, waits_of: Callable[[Any, int], int]) -> None:
    model = tiny_policy(family)
    assert waits_of(model, 24) - waits_of(model, 8) == 16
