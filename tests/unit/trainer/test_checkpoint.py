from pathlib import Path

import pytest
import torch

from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.checkpoint import Checkpoint, CorruptCheckpoint


def trained(steps: int) -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    advance(model, optimizer, steps)
    return model, optimizer


def advance(model: torch.nn.Linear, optimizer: torch.optim.AdamW, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()


def save_training(directory: Path, model: torch.nn.Linear, optimizer: torch.optim.AdamW, step: int) -> None:
    tensors = checkpoint.training_tensors(model, optimizer)
    checkpoint.save(directory, Checkpoint(step, tensors, {"loss": 0.1 + 0.2}, {"name": "run"}))


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    save_training(tmp_path, model, optimizer, 3)
    advance(model, optimizer, 4)

    found = checkpoint.latest(tmp_path)
    assert found is not None
    other = torch.nn.Linear(3, 2)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.1, fused=True)
    checkpoint.restore_training(other, other_optimizer, found.tensors)
    advance(other, other_optimizer, 4)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)


def test_state_comes_back_exactly(tmp_path: Path) -> None:
    save_training(tmp_path, *trained(1), 7)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.step, found.numbers, found.texts) == (7, {"loss": 0.1 + 0.2}, {"name": "run"})


def test_the_newest_is_read_and_older_ones_are_deleted(tmp_path: Path) -> None:
    for step in (9, 10):
        save_training(tmp_path, *trained(1), step)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert [p.name for p in tmp_path.iterdir()] == ["10"]


def test_an_unfinished_write_is_never_read(tmp_path: Path) -> None:
    save_training(tmp_path, *trained(1), 1)
    unfinished = tmp_path / ".writing-abc"
    unfinished.mkdir()
    (unfinished / checkpoint.TENSORS).write_bytes(b"half")
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save_training(tmp_path, *trained(1), 1)
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, Checkpoint(2, {}, {"loss": object()}, {}))  # type: ignore[dict-item]
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_nothing_is_written_as_pickle(tmp_path: Path) -> None:
    save_training(tmp_path, *trained(1), 1)
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == ["state.json", "tensors.safetensors"]


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_is_an_error_of_its_own(tmp_path: Path, name: str, damage: str) -> None:
    save_training(tmp_path, *trained(1), 1)
    path = tmp_path / "1" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:20])
    else:
        path.unlink()
    with pytest.raises(CorruptCheckpoint):
        checkpoint.latest(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_training(tmp_path, *trained(1), 1)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    other = torch.nn.Linear(4, 2)
    with pytest.raises(CorruptCheckpoint, match="shape"):
        checkpoint.restore_training(other, torch.optim.AdamW(other.parameters()), found.tensors)


def test_frozen_parameters_are_not_stored(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    model.bias.requires_grad_(False)
    assert "model.bias" not in checkpoint.training_tensors(model, optimizer)


def test_no_directory_means_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None
    checkpoint.clear(tmp_path / "none")
