"""Offload to CPU and disk: what must be there before the first step, and what a resume brings back.

Under NVMe offload DeepSpeed copies its swap files into a checkpoint and back, but takes only the weights from
them: AdamW's moments and step count, and the parts too small to be swapped, are brought back here.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from gaguide.distributed import World, all_gather, raise_together
from gaguide.engine.config_offload import needed_ops, nvme_folders, offload_device
from gaguide.engine.fp32_state import SWAPPED
from gaguide.engine.ops import cpu_adam_or_fallback, load_op
from gaguide.errors import Fault, UserError
from gaguide.files import write_json

# fp32 weights, two moments and the gradients of a step, all in fp32.
_BYTES_ON_DISK = 16
_MOMENTS = ("exp_avg", "exp_avg_sq")


def offload_is_ready(deepspeed: dict[str, Any], parameters: int, world: World) -> None:
    """Raise the faults that offload would meet later: no op, no folder, no room on the disk."""
    faults: list[Fault] = []
    for folder in nvme_folders(deepspeed):
        faults += _folder_faults(folder, parameters, world)
    if "async_io" in needed_ops(deepspeed):
        try:
            load_op("async_io", _several_hosts(world))
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)


def _folder_faults(folder: Path, parameters: int, world: World) -> list[Fault]:
    field = "zero_optimization.offload_optimizer.nvme_path (DeepSpeed JSON)"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [Fault(field, f"cannot be made ({error.strerror})", "name another folder", str(folder))]
    if not os.access(folder, os.W_OK):
        return [Fault(field, "cannot be written to", "name another folder", str(folder))]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    needed = _BYTES_ON_DISK * parameters * here // world.size
    kept = sum(path.stat().st_size for path in folder.rglob("*.swp"))  # of an earlier start, written over
    free = shutil.disk_usage(folder).free + kept
    if free < needed:
        problem = f"{free / 1e9:.1f} GB are free, this host's ranks swap about {needed / 1e9:.1f} GB"
        return [Fault(field, problem, "name a folder on a larger disk", str(folder))]
    return []


def _several_hosts(world: World) -> bool:
    return int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) < world.size


def cpu_optimizer_ready(deepspeed: dict[str, Any], world: World) -> bool:
    """Whether the optimizer is offloaded and every rank has DeepSpeedCPUAdam for it; a collective."""
    if "cpu_adam" not in needed_ops(deepspeed):
        return False
    ready = all(all_gather(raise_together(lambda: cpu_adam_or_fallback(_several_hosts(world)))))
    if not ready and offload_device(deepspeed, "optimizer") == "nvme":
        problem = "DeepSpeed's op cpu_adam cannot be built here, and torch's AdamW cannot be swapped to disk"
        raise UserError(Fault("zero_optimization.offload_optimizer", problem, "use device: cpu"))
    return ready


def save_swapped(engine: Any, folder: Path, world: World) -> list[Path]:
    """Beside DeepSpeed's copy of the swap files: this rank's sub groups and their step counts.

    `folder` holds DeepSpeed's files. Returns the files written: none where nothing is swapped.
    """
    if not _swaps(engine):
        return []
    optimizer = engine.optimizer
    groups = [
        {
            "file": f"{group.ds_id}.tensor.swp" if optimizer._swappable_optimizer_subgroup(index) else None,
            "numel": int(optimizer.fp16_partitioned_groups_flat_numel[index]),
            "step": _step_count(optimizer.optimizer.state.get(group, {}).get("step", 0)),
        }
        for index, group in enumerate(optimizer.fp32_partitioned_groups_flat)
    ]
    record = folder / "offloaded_tensors" / f"rank{world.rank:02}" / SWAPPED
    write_json(record, groups)
    return [record]


def restore_offloaded(engine: Any, folder: Path, world: World) -> None:
    """After DeepSpeed's own loading of `folder`: what it does not bring back of an offloaded optimizer."""
    if _swaps(engine):
        # Small parameters stay gathered on every rank: from partitions that are only now what they were.
        engine.optimizer.checkpoint_event_prologue()
        _restore_swapped(engine, folder, world)
        engine.optimizer.checkpoint_event_epilogue()
    adam = getattr(engine.optimizer, "optimizer", None)
    if hasattr(adam, "ds_opt_adam"):
        _replay_step_counts(adam)


def _replay_step_counts(adam: Any) -> None:
    """Bring DeepSpeedCPUAdam's own powers of the betas to where they were, to the last bit.

    It multiplies them up step by step in fp32; started at a later step it would take them by `pow`, which
    differs in the last digit. An element that nobody sees is updated as often.
    """
    steps = max((int(state["step"]) for state in adam.state.values() if "step" in state), default=0)
    beta1, beta2 = adam.param_groups[0]["betas"]
    unseen = [torch.zeros(1) for _ in range(4)]
    for step in range(1, steps + 1):
        adam.ds_opt_adam.adam_update(adam.opt_id, step, 0.0, beta1, beta2, 1e-8, 0.0, True, *unseen)


def _restore_swapped(engine: Any, folder: Path, world: World) -> None:
    """Moments, step counts, and the parts that were not swapped.

    DeepSpeed copies the swap files back, and of them takes the weights only.
    """
    optimizer = engine.optimizer
    swapped = folder / "offloaded_tensors" / f"rank{world.rank:02}"
    groups = json.loads((swapped / SWAPPED).read_text("utf-8"))
    # Its hashes hold, so unpickling it is safe.
    (path,) = folder.glob(f"*zero_pp_rank_{world.rank}_mp_rank_*_optim_states.pt")
    saved = torch.load(path, map_location="cpu", weights_only=False, mmap=True)["optimizer_state_dict"]
    states = saved["optimizer_state_dict"]["state"]
    for index, (group, record) in enumerate(zip(optimizer.fp32_partitioned_groups_flat, groups)):
        if record["step"] == 0:
            continue
        state: dict[str, Any] = {"step": record["step"]}
        if record["file"] is None:
            state |= {moment: states[index][moment].to(group.device, copy=True) for moment in _MOMENTS}
            with torch.no_grad():
                group.copy_(saved["fp32_flat_groups"][index])
                optimizer.fp16_partitioned_groups_flat[index].copy_(group)
            optimizer.optimizer.state[group] = state
            continue
        for moment in _MOMENTS:
            mapped = torch.from_file(
                str(swapped / f"{moment}-{record['file']}"), shared=False, size=record["numel"]
            )
            state[moment] = mapped.clone()
        # What DeepSpeed does around a step: the moments join the group's swap files when it goes out.
        optimizer._optimizer_states_and_gradient_swap_in(index)
        optimizer.optimizer.state[group] = state
        optimizer._optimizer_states_and_gradient_swap_out(index)


def _swaps(engine: Any) -> bool:
    return bool(getattr(engine.optimizer, "swap_optimizer", False))


def _step_count(step: Any) -> int:
    return int(step.item() if isinstance(step, torch.Tensor) else step)
