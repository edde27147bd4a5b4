"""Going on from a checkpoint of other ranks, another ZeRO stage or another offload.

DeepSpeed's universal checkpoints fail from stage 2 to stage 3 and need a converted copy on disk. Here each
rank takes its part of every parameter's weight and moments out of the saved files, and puts it where its
engine keeps it: through DeepSpeed's own mapping from parameters to flat pieces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gaguide.engine.config_offload import SUB_GROUP_SIZE, offload_device
from gaguide.engine.saved_state import MOMENTS, WEIGHT, SavedState
from gaguide.errors import Fault, UserError

# Settings of ZeRO, with DeepSpeed's defaults, by which its files are cut: how parameters are padded, and
# split into sub groups.
_CUTS: dict[int, dict[str, Any]] = {
    1: {"parameter_alignment": False},
    2: {"parameter_alignment": False},
    3: {"sub_group_size": SUB_GROUP_SIZE},
}


def state_layout(engine: Any, deepspeed: dict[str, Any]) -> dict[str, Any]:
    """What shapes the engine's files beside the number of ranks, as plain JSON.

    DeepSpeed loads a state that was written in the same layout; another one it takes for its own in silence,
    or fails on it.
    """
    zero = deepspeed.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    return {
        "zero_stage": stage,
        "offload_optimizer": offload_device(deepspeed, "optimizer"),
        "offload_param": offload_device(deepspeed, "param"),
        # DeepSpeed's AdamW on the CPU counts its steps otherwise than torch's.
        "cpu_adam": hasattr(getattr(engine.optimizer, "optimizer", None), "ds_opt_adam"),
        **{name: zero.get(name, default) for name, default in _CUTS.get(stage, {}).items()},
    }


def load_resized(engine: Any, folder: Path, zero_stage: int) -> None:
    """Load into `engine` (any stage, any number of ranks) what `zero_stage` saved below `folder`.

    The folder's hashes must hold. Raises a `UserError` where either side keeps its optimizer on NVMe.
    """
    if getattr(engine.optimizer, "swap_optimizer", False) or (folder / "offloaded_tensors").exists():
        raise UserError(
            Fault(
                "output",
                "holds checkpoints of other ranks, another ZeRO stage or another offload; with NVMe none of "
                "these can change",
                "go on with the same ranks and DeepSpeed JSON, or without NVMe in both runs",
                str(folder.parent.parent),
            )
        )
    saved = SavedState(folder, zero_stage)
    trained = {name: each for name, each in engine.module.named_parameters() if each.requires_grad}
    missing = trained.keys() ^ saved.places.keys()
    if missing:
        raise RuntimeError(f"the checkpoint does not fit the model: {', '.join(sorted(missing))}")
    with torch.no_grad():
        if not engine.zero_optimization():
            _into_whole(engine.optimizer, trained, saved)
        elif engine.zero_optimization_stage() < 3:
            _into_cut_groups(engine.optimizer, trained, saved)
        else:
            _into_cut_parameters(engine.optimizer, trained, saved)
    for key, value in saved.counters.items():
        setattr(engine, key, value)
    if saved.loss_scaler is not None and engine.zero_optimization():
        engine.optimizer.loss_scaler = saved.loss_scaler


def _fresh_state(adam: Any, flat: torch.Tensor, saved: SavedState) -> None:
    """Room for the moments of a flat piece, and AdamW's count of steps."""
    if not saved.steps:
        return
    count = saved.steps if hasattr(adam, "ds_opt_adam") else torch.tensor(float(saved.steps))
    if isinstance(count, torch.Tensor) and adam.defaults.get("fused"):
        count = count.to(flat.device)  # where the fused kernel looks for it
    adam.state[flat] = {"step": count} | {moment: torch.zeros_like(flat.data) for moment in MOMENTS}


def _into_whole(adam: Any, trained: dict[str, Any], saved: SavedState) -> None:
    for name, parameter in trained.items():
        parameter.copy_(saved(name))
        _fresh_state(adam, parameter, saved)
        for moment in MOMENTS if saved.steps else ():
            adam.state[parameter][moment].copy_(saved(name, moment))


def _into_cut_groups(optimizer: Any, trained: dict[str, Any], saved: SavedState) -> None:
    """ZeRO stages 1 and 2: every parameter knows which stretch of it lies where in this rank's vector."""
    adam = optimizer.optimizer
    for flat in optimizer.single_partition_of_fp32_groups:
        _fresh_state(adam, flat, saved)
    for name, parameter in trained.items():
        if parameter._hp_mapping is None:  # all of it is another rank's
            continue
        here, there = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
        flat = optimizer.single_partition_of_fp32_groups[parameter._hp_mapping.param_group_index]
        parts = {WEIGHT: flat} | {moment: adam.state[flat][moment] for moment in MOMENTS if saved.steps}
        for part, target in parts.items():
            source = saved(name, part).flatten()[here.start : here.start + here.numel]
            target.data[there.start : there.start + there.numel].copy_(source)
    optimizer.update_lp_params()


def _into_cut_parameters(optimizer: Any, trained: dict[str, Any], saved: SavedState) -> None:
    """ZeRO stage 3: this rank's share of each parameter, filled up with zeros where it is not a whole one."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    adam = optimizer.optimizer
    for flat in optimizer.fp32_partitioned_groups_flat:
        _fresh_state(adam, flat, saved)
    for name, parameter in trained.items():
        share, rank = parameter.ds_tensor.numel(), optimizer._get_param_partition_rank(parameter)

        def mine(part: str, name: str = name, share: int = share, rank: int = rank) -> torch.Tensor:
            flat = saved(name, part).flatten()[rank * share : (rank + 1) * share]
            return torch.nn.functional.pad(flat, (0, share - flat.numel()))

        safe_set_local_fp32_param(parameter, mine(WEIGHT))
        for moment in MOMENTS if saved.steps else ():
            safe_set_local_optimizer_state(parameter, mine(moment), moment)
    # What DeepSpeed does at the end of its own loading: weights in the computing precision follow.
    for flat, half in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat):
        half.data.copy_(flat.data)
    for half, parameters in zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp16_partitioned_groups):
        for part, value in zip(parameters, optimizer.unflatten(half, parameters)):
            part.data = value.data
    kept = optimizer.persistent_parameters
    if kept:
        kept[0].partition(kept)
        kept[0].all_gather(kept)
