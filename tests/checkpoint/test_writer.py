"""Disk errors while DeepSpeed saves are recorded, never raised between its collectives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gaguide.engine.checkpoint_writer import CheckpointWriter, write_state
from gaguide.engine.save import STATE_TAG, SaveResult


class SwappingEngine:
    """DeepSpeed's part in saving an optimizer on NVMe: it writes a file and would copy swap files."""

    global_rank = 1

    def __init__(self, swap_folder: Path) -> None:
        self.checkpoint_engine = CheckpointWriter()
        self.optimizer = SimpleNamespace(optimizer_swapper=SimpleNamespace(swap_folder=swap_folder))

    def zero_optimization(self) -> bool:
        return True

    def zero_nvme_offload_optimizer(self) -> bool:
        return True

    def _copy_recovery_script(self, folder: str) -> None:
        raise AssertionError("the scripts are copied")

    def save_checkpoint(
        self, folder: str, tag: str, client_state: object, save_latest: bool, exclude_frozen_parameters: bool
    ) -> None:
        assert not self.zero_nvme_offload_optimizer(), "DeepSpeed copies swap files"
        self._copy_recovery_script(folder)
        self.checkpoint_engine.makedirs(f"{folder}/{tag}", exist_ok=True)
        self.checkpoint_engine.save({"weight": torch.ones(2)}, f"{folder}/{tag}/model.pt")


@pytest.fixture
def engine(tmp_path: Path) -> SwappingEngine:
    (tmp_path / "swap" / "zero").mkdir(parents=True)
    for name in ("1.tensor.swp", "1.gradient.swp"):
        (tmp_path / "swap" / "zero" / name).write_bytes(b"swapped")
    return SwappingEngine(tmp_path / "swap")


def test_swap_files_are_copied_without_gradients(engine: SwappingEngine, tmp_path: Path) -> None:
    result = write_state(engine, tmp_path)
    state = tmp_path / STATE_TAG
    swapped = state / "offloaded_tensors" / "rank01" / "zero" / "1.tensor.swp"
    assert result == SaveResult([state / "model.pt", swapped])
    assert torch.equal(engine.checkpoint_engine.load(str(state / "model.pt"))["weight"], torch.ones(2))
    assert engine.zero_nvme_offload_optimizer(), "the engine is as before"
    assert sorted(result.hashes(tmp_path)) == [
        str(path.relative_to(tmp_path)) for path in sorted(result.files)
    ]


def test_a_disk_error_stops_writing_but_not_the_collectives(engine: SwappingEngine, tmp_path: Path) -> None:
    (tmp_path / STATE_TAG).write_text("a file where the folder should be")
    result = write_state(engine, tmp_path)
    assert result.problem == "File exists"
    (tmp_path / STATE_TAG).unlink()
    assert write_state(engine, tmp_path).problem is None, "the next save starts afresh"


def test_other_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no disk error"):
        SaveResult().attempt(_fail)


def _fail() -> None:
    raise RuntimeError("no disk error")
