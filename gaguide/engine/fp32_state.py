"""The fp32 weights of a saved state, gathered from a checkpoint of any ZeRO stage.

Everything here unpickles: call it only for a folder that has been verified against its manifest.
"""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from gaguide.engine.save import STATE_TAG

SWAPPED = "swapped.json"
"""File next to a rank's swap files that lists file, length and step count of each of its sub groups."""


def fp32_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every parameter in fp32 by name; `checkpoint` is a checkpoint's folder, written by any ZeRO stage."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = checkpoint / STATE_TAG
    if any(folder.glob(f"offloaded_tensors/*/{SWAPPED}")):
        return _swapped_state(folder)
    if any(folder.glob("*optim_states.pt")):
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # DeepSpeed prints its progress
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), STATE_TAG))
    # Stage 0: the whole model is in rank 0's file.
    states = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    return {name: tensor.float() for name, tensor in states["module"].items()}


def _swapped_state(folder: Path) -> dict[str, torch.Tensor]:
    """`fp32_state` of an optimizer on NVMe, whose weights are in swap files; those are mapped, not read."""
    from deepspeed.utils import zero_to_fp32

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        optim_files = zero_to_fp32.get_optim_files(str(folder))
        _, world_size, groups, _ = zero_to_fp32.parse_optim_states(optim_files, str(folder))
        for rank, rank_groups in enumerate(groups):
            swapped = folder / "offloaded_tensors" / f"rank{rank:02}"
            for at, record in enumerate(json.loads((swapped / SWAPPED).read_text("utf-8"))):
                if record["file"] is not None:
                    path = str(swapped / record["file"])
                    rank_groups[at] = torch.from_file(path, shared=False, size=record["numel"])
        models = zero_to_fp32.parse_model_states(zero_to_fp32.get_model_state_files(str(folder)))
        state = zero_to_fp32._get_fp32_state_dict_from_zero3_checkpoint(world_size, groups, models, False)
        return dict(zero_to_fp32.to_torch_tensor(state))
