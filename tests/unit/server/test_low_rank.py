"""The difference of two versions as an adapter."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.adapted_policies import adapted
from support.policy_versions import small_llama

from rewardloop_policy.low_rank import NoAdapter, factors, write_difference

IDS = torch.tensor([[5, 9, 30, 7, 2, 100]])


def saved(model: object, directory: Path) -> Path:
    model.save_pretrained(directory)  # type: ignore[attr-defined]
    return directory


def test_the_adapter_makes_the_version_of_the_base(tmp_path: Path) -> None:
    base = small_llama(1)
    version = adapted(base, 3)
    paths = saved(base, tmp_path / "base"), saved(version, tmp_path / "version")
    assert write_difference(*paths, tmp_path / "adapter", most_rank=8) == 3
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected, found = version(IDS).logits, again(IDS).logits
        assert (base(IDS).logits - expected).abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"base", "version", "adapter"}


def test_the_same_weights_need_no_adapter(tmp_path: Path) -> None:
    paths = saved(small_llama(1), tmp_path / "base"), saved(small_llama(1), tmp_path / "version")
    assert write_difference(*paths, tmp_path / "adapter", most_rank=8) == 0
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_merged_half_precision_weights_takes_no_rank(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(300, 200, generator=generator).to(dtype)
    change = torch.randn(300, 4, generator=generator) @ torch.randn(4, 200, generator=generator) / 10
    new = (old.float() + change).to(dtype)
    found = factors(old, new, most_rank=16)
    assert found is not None
    a, b = found
    assert a.shape[0] == 4
    assert ((b @ a) - change).norm() < 0.05 * change.norm()


def test_a_large_matrix_is_decomposed_by_projection() -> None:
    generator = torch.Generator().manual_seed(2)
    old = torch.randn(700, 600, generator=generator)
    change = torch.randn(700, 5, generator=generator) @ torch.randn(5, 600, generator=generator)
    found = factors(old, old + change, most_rank=8)
    assert found is not None
    assert found[0].shape == (5, 600)
    assert (found[1] @ found[0] - change).abs().max() < 1e-3


def test_what_no_adapter_can_express_is_refused_by_name(tmp_path: Path) -> None:
    base = saved(small_llama(1), tmp_path / "base")
    with pytest.raises(NoAdapter, match="more than rank 2"):
        write_difference(base, saved(adapted(small_llama(1), 3), tmp_path / "high"), tmp_path / "adapter", 2)
    other = small_llama(1)
    torch.nn.init.constant_(other.model.norm.weight, 2.0)
    with pytest.raises(NoAdapter, match=r"model\.norm\.weight differs, which no adapter can change"):
        write_difference(base, saved(other, tmp_path / "norm"), tmp_path / "adapter", 8)
    with pytest.raises(NoAdapter, match="has another shape"):
        write_difference(base, saved(small_llama(1, width=16), tmp_path / "wide"), tmp_path / "adapter", 8)
    assert not (tmp_path / "adapter").exists()
