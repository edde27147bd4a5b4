"""A saved state by parameter name, whatever ZeRO stage and number of ranks wrote it.

DeepSpeed stores flat partitions: at stages 1 and 2 each parameter group is one vector, partitioned among the
ranks; at stage 3 each parameter is partitioned, and a rank's partitions are concatenated. Files are mapped
into memory, so only the requested tensors are read.

Everything here unpickles: call it only for a folder that has been verified against its manifest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WEIGHT = "weight"
"""Part of a parameter's state: its value."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""The other parts: AdamW's first and second moment."""


@dataclass(frozen=True)
class _Place:
    """A parameter's position in the flat partitions."""

    group: int
    """Index of its parameter group."""
    start: int
    """Its first element in the group's vector (stages 0 to 2), or in each rank's partition (stage 3)."""
    shape: torch.Size
    """Its unpartitioned shape."""


class SavedState:
    """Whole weights and AdamW moments, in fp32, of the parameters in the DeepSpeed files of `folder`."""

    zero_stage: int
    """ZeRO stage of the run that saved it."""
    places: dict[str, _Place]
    """Position of every trained parameter, by name."""
    counters: dict[str, int]
    """The DeepSpeed engine's counters, by attribute."""
    loss_scaler: object
    """DeepSpeed's loss scaler; None at stage 0."""
    steps: int
    """Steps that AdamW has done; 0 before the first one that was not dropped."""

    def __init__(self, folder: Path, zero_stage: int) -> None:
        from deepspeed.utils.zero_to_fp32 import get_model_state_files, get_optim_files

        models = [_read(path) for path in get_model_state_files(str(folder))]
        self.zero_stage = zero_stage
        self.counters = {key: models[0][key] for key in ("global_steps", "global_samples", "skipped_steps")}
        self.loss_scaler = None
        if zero_stage == 0:
            self._read_whole(models[0])
        else:
            optimizers = [_read(path)["optimizer_state_dict"] for path in get_optim_files(str(folder))]
            self.loss_scaler = optimizers[0]["loss_scaler"]
            self._ranks = len(optimizers)
            if zero_stage < 3:
                self._read_flat_groups(models[0], optimizers)
            else:
                self._read_partitioned(models, optimizers)

    def __call__(self, name: str, part: str = WEIGHT) -> torch.Tensor:
        """The whole tensor of `part`, WEIGHT or one of MOMENTS, fp32; moments are 0 before the first step."""
        place = self.places[name]
        partitions = self._partitions.get((place.group, part))
        if partitions is None:
            return torch.zeros(place.shape)
        count = place.shape.numel()
        if self.zero_stage < 3:
            flat = _slice([partition for rank in partitions for partition in rank], place.start, count)
        else:
            share = math.ceil(count / self._ranks)
            flat = torch.cat([_slice(rank, place.start, share) for rank in partitions])[:count]
        return flat.float().reshape(place.shape)

    def _read_whole(self, model: dict[str, Any]) -> None:
        names, optimizer = model["gaguide"]["optimizer_parameters"], model["optimizer"]
        order = [index for group in optimizer["param_groups"] for index in group["params"]]
        module = model["module"]
        self.places = {name: _Place(at, 0, module[name].shape) for at, name in enumerate(names)}
        self._partitions = {(at, WEIGHT): [[module[name].flatten()]] for at, name in enumerate(names)}
        for at, index in enumerate(order):
            state = optimizer["state"].get(index, {})
            for moment in MOMENTS:
                if moment in state:
                    self._partitions[at, moment] = [[state[moment].flatten()]]
        self.steps = _step_count(optimizer["state"].values())

    def _read_flat_groups(self, model: dict[str, Any], optimizers: list[dict[str, Any]]) -> None:
        self.places = {}
        self._partitions = {}
        paddings = optimizers[0].get("param_alignment_paddings")
        states = [each["base_optimizer_state"]["state"] for each in optimizers]
        for group, shapes in enumerate(model["param_shapes"]):
            start = 0
            for at, (name, shape) in enumerate(shapes.items()):
                self.places[name] = _Place(group, start, shape)
                start += shape.numel() + (paddings[group][at] if paddings else 0)
            self._partitions[group, WEIGHT] = [
                [each["single_partition_of_fp32_groups"][group]] for each in optimizers
            ]
            for moment in MOMENTS:
                if all(moment in state.get(group, {}) for state in states):
                    self._partitions[group, moment] = [[state[group][moment]] for state in states]
        self.steps = _step_count(states[0].values())

    def _read_partitioned(self, models: list[dict[str, Any]], optimizers: list[dict[str, Any]]) -> None:
        self.places = {}
        start = 0
        for shapes in models[0]["param_shapes"]:
            for name, shape in shapes.items():
                self.places[name] = _Place(0, start, shape)
                start += math.ceil(shape.numel() / self._ranks)
        self._partitions = {(0, WEIGHT): [each["fp32_flat_groups"] for each in optimizers]}
        states = [each["optimizer_state_dict"]["state"] for each in optimizers]
        for moment in MOMENTS:
            if all(state and all(moment in group for group in state.values()) for state in states):
                self._partitions[0, moment] = [
                    [state[at][moment] for at in sorted(state)] for state in states
                ]
        self.steps = _step_count(states[0].values())


def _read(path: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return state


def _slice(partitions: list[torch.Tensor], start: int, count: int) -> torch.Tensor:
    """Elements `start` to `start + count` of the concatenation of flat tensors."""
    parts = []
    for partition in partitions:
        if start < partition.numel() and count > 0:
            part = partition[start : start + count]
            parts.append(part)
            count -= part.numel()
        start = max(0, start - partition.numel())
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def _step_count(states: Iterable[dict[str, Any]]) -> int:
    return max((int(state["step"]) for state in states if "step" in state), default=0)
