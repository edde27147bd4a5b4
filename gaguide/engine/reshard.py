"""Resuming from a checkpoint of another number of ranks, ZeRO stage or offload.

DeepSpeed's universal checkpoints fail from stage 2 to stage 3 and need a converted copy on disk. Here each
rank reads its part of every parameter's weight and moments from the saved files, and puts it where its engine
keeps it, through DeepSpeed's own mapping from parameters to flat partitions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gaguide.engine.layout import is_swapped
from gaguide.engine.saved_state import MOMENTS, WEIGHT, SavedState
from gaguide.errors import UserError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def load_resharded(engine: DeepSpeedEngine, state: Path, zero_stage: int) -> None:
    """Load into `engine` the state that any number of ranks at `zero_stage` saved into the folder `state`.

    The folder must have been verified. Raises a `UserError` where either side keeps its optimizer on NVMe.
    """
    if is_swapped(engine.optimizer) or (state / "offloaded_tensors").exists():
        raise UserError.of(
            "output",
            "holds checkpoints of another number of ranks, ZeRO stage or offload; with NVMe none of "
            "these can change",
            "resume with the same ranks and DeepSpeed JSON, or without NVMe in both runs",
            str(state.parent.parent),
        )
    saved = SavedState(state, zero_stage)
    trained = {name: each for name, each in engine.module.named_parameters() if each.requires_grad}
    differing = trained.keys() ^ saved.places.keys()
    if differing:
        raise RuntimeError(f"the checkpoint does not fit the model: {', '.join(sorted(differing))}")
    with torch.no_grad():
        if not engine.zero_optimization():
            _load_whole(engine.optimizer, trained, saved)
        elif engine.zero_optimization_stage() < 3:
            _load_flat_groups(engine.optimizer, trained, saved)
        else:
            _load_partitioned(engine.optimizer, trained, saved)
    for key, value in saved.counters.items():
        setattr(engine, key, value)
    if saved.loss_scaler is not None and engine.zero_optimization():
        engine.optimizer.loss_scaler = saved.loss_scaler


def _allocate_moments(adam: Any, flat: torch.Tensor, saved: SavedState) -> None:
    """Allocate the moments of a flat partition, and set AdamW's count of steps."""
    if not saved.steps:
        return
    count = saved.steps if hasattr(adam, "ds_opt_adam") else torch.tensor(float(saved.steps))
    if isinstance(count, torch.Tensor) and adam.defaults.get("fused"):
        count = count.to(flat.device)  # where the fused kernel expects it
    adam.state[flat] = {"step": count} | {moment: torch.zeros_like(flat.data) for moment in MOMENTS}


def _load_whole(adam: Any, trained: dict[str, Any], saved: SavedState) -> None:
    for name, parameter in trained.items():
        parameter.copy_(saved(name))
        _allocate_moments(adam, parameter, saved)
        for moment in MOMENTS if saved.steps else ():
            adam.state[parameter][moment].copy_(saved(name, moment))


def _load_flat_groups(optimizer: Any, trained: dict[str, Any], saved: SavedState) -> None:
    """ZeRO stages 1 and 2: each parameter has a mapping from its elements to this rank's flat partition."""
    adam = optimizer.optimizer
    for flat in optimizer.single_partition_of_fp32_groups:
        _allocate_moments(adam, flat, saved)
    for name, parameter in trained.items():
        if parameter._hp_mapping is None:  # it is entirely on other ranks
            continue
        here, there = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
        flat = optimizer.single_partition_of_fp32_groups[parameter._hp_mapping.param_group_index]
        parts = {WEIGHT: flat} | {moment: adam.state[flat][moment] for moment in MOMENTS if saved.steps}
        for part, target in parts.items():
            source = saved(name, part).flatten()[here.start : here.start + here.numel]
            target.data[there.start : there.start + there.numel].copy_(source)
    optimizer.update_lp_params()


def _load_partitioned(optimizer: Any, trained: dict[str, Any], saved: SavedState) -> None:
    """ZeRO stage 3: this rank's share of each parameter, padded with zeros to the common length."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    adam = optimizer.optimizer
    for flat in optimizer.fp32_partitioned_groups_flat:
        _allocate_moments(adam, flat, saved)
    for name, parameter in trained.items():
        share, rank = parameter.ds_tensor.numel(), optimizer._get_param_partition_rank(parameter)

        def own_share(part: str, name: str = name, share: int = share, rank: int = rank) -> torch.Tensor:
            flat = saved(name, part).flatten()[rank * share : (rank + 1) * share]
            return torch.nn.functional.pad(flat, (0, share - flat.numel()))

        safe_set_local_fp32_param(parameter, own_share(WEIGHT))
        for moment in MOMENTS if saved.steps else ():
            safe_set_local_optimizer_state(parameter, own_share(moment), moment)
    # As at the end of DeepSpeed's own loading: copy the fp32 weights to those of the computing precision.
    for flat, half in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat):
        half.data.copy_(flat.data)
    for half, parameters in zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp16_partitioned_groups):
        for part, value in zip(parameters, optimizer.unflatten(half, parameters)):
            part.data = value.data
    persistent = optimizer.persistent_parameters
    if persistent:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)
