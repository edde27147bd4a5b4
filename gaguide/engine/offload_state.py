"""Offload to CPU and NVMe: the checks before the first step, and the state that a resume must restore.

Under NVMe offload DeepSpeed copies its swap files into a checkpoint and back, but takes only the weights from
them. AdamW's moments and step count, and the parts too small to be swapped, are restored here.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gaguide.distributed import World, all_gather, raise_together
from gaguide.engine.config_resolved import DeepSpeedConfig
from gaguide.engine.fp32_state import SWAPPED
from gaguide.engine.layout import is_swapped, uses_cpu_adam
from gaguide.engine.ops import cpu_adam_or_fallback, load_op
from gaguide.engine.saved_state import MOMENTS
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.files import write_json

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

# fp32 weights, two moments and the gradients of a step, all in fp32.
_BYTES_ON_DISK = 16


def check_offload(config: DeepSpeedConfig, parameters: int, world: World) -> None:
    """Raise faults that would stop offload later: op missing, folder unusable, disk too small."""
    with FaultCollector() as faults:
        for folder in config.nvme_folders:
            faults.add(*_folder_faults(folder, parameters, world))
        if "async_io" in config.needed_ops:
            faults.attempt(load_op, "async_io", _spans_hosts(world))


def _folder_faults(folder: Path, parameters: int, world: World) -> list[Fault]:
    field = "zero_optimization.offload_optimizer.nvme_path (DeepSpeed JSON)"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be created ({error.strerror})"
        return [Fault(field, problem, "choose another folder", str(folder))]
    if not os.access(folder, os.W_OK):
        return [Fault(field, "cannot be written to", "choose another folder", str(folder))]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    needed = _BYTES_ON_DISK * parameters * here // world.size
    overwritten = sum(path.stat().st_size for path in folder.rglob("*.swp"))  # files of an earlier start
    free = shutil.disk_usage(folder).free + overwritten
    if free < needed:
        problem = f"{free / 1e9:.1f} GB are free, but this host's ranks swap about {needed / 1e9:.1f} GB"
        return [Fault(field, problem, "choose a folder on a larger disk", str(folder))]
    return []


def _spans_hosts(world: World) -> bool:
    return int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) < world.size


def cpu_optimizer_ready(config: DeepSpeedConfig, world: World) -> bool:
    """Whether the optimizer is offloaded and every rank has DeepSpeedCPUAdam for it; a collective.

    Raises a `UserError` on all ranks where NVMe offload needs the op and it cannot be built.
    """
    if "cpu_adam" not in config.needed_ops:
        return False
    ready = all(all_gather(raise_together(lambda: cpu_adam_or_fallback(_spans_hosts(world)))))
    if not ready and config.offload_optimizer == "nvme":
        problem = "DeepSpeed's op cpu_adam cannot be built here, and torch's AdamW cannot be swapped to disk"
        raise UserError.of("zero_optimization.offload_optimizer", problem, "use device: cpu")
    return ready


def save_swapped(engine: DeepSpeedEngine, state: Path, rank: int) -> list[Path]:
    """Write the sub groups of this rank and their step counts next to the copies of its swap files.

    `state` holds DeepSpeed's files. Returns the files written: none where nothing is swapped.
    """
    if not is_swapped(engine.optimizer):
        return []
    optimizer = engine.optimizer
    groups = [
        {
            "file": f"{group.ds_id}.tensor.swp" if optimizer._swappable_optimizer_subgroup(index) else None,
            "numel": int(optimizer.fp16_partitioned_groups_flat_numel[index]),
            "step": int(optimizer.optimizer.state.get(group, {}).get("step", 0)),
        }
        for index, group in enumerate(optimizer.fp32_partitioned_groups_flat)
    ]
    record = state / "offloaded_tensors" / f"rank{rank:02}" / SWAPPED
    write_json(record, groups)
    return [record]


def restore_offloaded(engine: DeepSpeedEngine, state: Path, rank: int) -> None:
    """Restore the parts of an offloaded optimizer that DeepSpeed's own loading of `state` leaves out."""
    if is_swapped(engine.optimizer):
        # Small parameters stay gathered on every rank: gather them again, from the restored partitions.
        engine.optimizer.checkpoint_event_prologue()
        _restore_swapped(engine.optimizer, state, rank)
        engine.optimizer.checkpoint_event_epilogue()
    if uses_cpu_adam(engine.optimizer):
        _replay_step_counts(engine.optimizer.optimizer)


def _replay_step_counts(adam: Any) -> None:
    """Restore DeepSpeedCPUAdam's running powers of its betas, bit for bit.

    It multiplies them up step by step in fp32; started at a later step it would compute them with `pow`,
    which differs in the last digit. So a dummy element is updated as many times as steps were done.
    """
    steps = max((int(state["step"]) for state in adam.state.values() if "step" in state), default=0)
    beta1, beta2 = adam.param_groups[0]["betas"]
    dummies = [torch.zeros(1) for _ in range(4)]
    for step in range(1, steps + 1):
        adam.ds_opt_adam.adam_update(adam.opt_id, step, 0.0, beta1, beta2, 1e-8, 0.0, True, *dummies)


def _restore_swapped(optimizer: Any, state: Path, rank: int) -> None:
    """Restore moments, step counts, and the parts that were not swapped."""
    swapped = state / "offloaded_tensors" / f"rank{rank:02}"
    groups = json.loads((swapped / SWAPPED).read_text("utf-8"))
    # Its hashes were verified, so unpickling it is safe.
    (path,) = state.glob(f"*zero_pp_rank_{rank}_mp_rank_*_optim_states.pt")
    saved = torch.load(path, map_location="cpu", weights_only=False, mmap=True)["optimizer_state_dict"]
    states = saved["optimizer_state_dict"]["state"]
    for index, (group, record) in enumerate(zip(optimizer.fp32_partitioned_groups_flat, groups)):
        if record["step"] == 0:
            continue
        restored: dict[str, Any] = {"step": record["step"]}
        if record["file"] is None:
            restored |= {moment: states[index][moment].to(group.device, copy=True) for moment in MOMENTS}
            with torch.no_grad():
                group.copy_(saved["fp32_flat_groups"][index])
                optimizer.fp16_partitioned_groups_flat[index].copy_(group)
            optimizer.optimizer.state[group] = restored
            continue
        for moment in MOMENTS:
            path = swapped / f"{moment}-{record['file']}"
            restored[moment] = torch.from_file(str(path), shared=False, size=record["numel"]).clone()
        # The calls that DeepSpeed makes around a step: swapping out writes the moments to the swap files.
        optimizer._optimizer_states_and_gradient_swap_in(index)
        optimizer.optimizer.state[group] = restored
        optimizer._optimizer_states_and_gradient_swap_out(index)
