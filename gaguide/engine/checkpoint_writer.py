"""Saving through DeepSpeed, with every file write under our control. Imports DeepSpeed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from gaguide.engine.save import STATE_TAG, SaveResult


class CheckpointWriter(CheckpointEngine):
    """Writes DeepSpeed's files with `torch.save`; failures are recorded in `result` instead of raised."""

    def __init__(self) -> None:
        super().__init__()
        self.result = SaveResult()

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder."""
        self.result.attempt(Path(path).mkdir, parents=True, exist_ok=exist_ok)

    def create(self, info: CheckpointCommitInfo) -> None:
        """Do nothing: DeepSpeed announces a checkpoint."""

    def save(self, state_dict: dict[str, object], path: str) -> None:
        """Write one file."""
        self.result.attempt(torch.save, state_dict, path)
        self.result.files.append(Path(path))

    def load(self, path: str, map_location: str | torch.device | None = None) -> dict[str, object]:
        """Read one file; its hash must have been verified, since it is unpickled."""
        state: dict[str, object] = torch.load(path, map_location=map_location, weights_only=False)
        return state

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Do nothing: publishing a checkpoint is the store's task."""
        return True


def write_state(engine: DeepSpeedEngine, folder: Path, trained_only: bool = False) -> SaveResult:
    """Save the engine's state into `folder`/STATE_TAG; a collective that never raises a disk error.

    `engine.checkpoint_engine` must be a `CheckpointWriter`. `trained_only` leaves out the parameters that are
    not trained.
    """
    writer: CheckpointWriter = engine.checkpoint_engine
    writer.result = SaveResult()
    extra = {"optimizer_parameters": _optimizer_parameters(engine)}
    swaps = engine.zero_nvme_offload_optimizer()
    with _without_copies(engine), _trained_parameters(engine) if trained_only else nullcontext():
        engine.save_checkpoint(
            str(folder),
            STATE_TAG,
            client_state={"gaguide": extra},
            save_latest=False,
            exclude_frozen_parameters=trained_only,
        )
    if swaps:
        _copy_swap_files(engine, folder / STATE_TAG, writer.result)
    return writer.result


@contextmanager
def _without_copies(engine: DeepSpeedEngine) -> Iterator[None]:
    """Inside, DeepSpeed's saving copies no swap files and no scripts.

    It copies with shutil between its collectives, where a full disk would leave the other ranks waiting.
    Methods of the instance take precedence over those of its class.
    """
    engine.zero_nvme_offload_optimizer = lambda: False
    engine._copy_recovery_script = lambda _: None
    try:
        yield
    finally:
        del engine.zero_nvme_offload_optimizer, engine._copy_recovery_script


@contextmanager
def _trained_parameters(engine: DeepSpeedEngine) -> Iterator[None]:
    """Inside, DeepSpeed saves only the module's trained parameters.

    Its own `exclude_frozen_parameters` keeps an output layer that is tied to a frozen embedding, and buffers.
    """

    def module_state_dict(exclude_frozen_parameters: bool = True) -> dict[str, torch.Tensor]:
        state = engine.module.state_dict()
        return {name: state[name] for name, each in engine.module.named_parameters() if each.requires_grad}

    engine.module_state_dict = module_state_dict
    try:
        yield
    finally:
        del engine.module_state_dict


def _copy_swap_files(engine: DeepSpeedEngine, state: Path, result: SaveResult) -> None:
    """Copy the rank's swap files to where DeepSpeed's loading looks for them; gradients are left out."""
    target = state / "offloaded_tensors" / f"rank{engine.global_rank:02}"
    source = engine.optimizer.optimizer_swapper.swap_folder
    result.attempt(shutil.copytree, source, target, ignore=shutil.ignore_patterns("*gradient*"))
    result.files += [path for path in target.rglob("*") if path.is_file()]


def _optimizer_parameters(engine: DeepSpeedEngine) -> list[str] | None:
    """Parameter names in the optimizer's order at ZeRO stage 0, where DeepSpeed does not record them."""
    if engine.zero_optimization():
        return None
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return [names.get(id(each), "") for group in engine.optimizer.param_groups for each in group["params"]]
