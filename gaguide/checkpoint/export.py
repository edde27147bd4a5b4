"""Export of a checkpoint as a folder that `AutoModelForCausalLM.from_pretrained` loads.

The weights are the optimizer's fp32 master weights, whatever precision the run computed in. Needs neither a
GPU nor a process group.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from gaguide.checkpoint.companions import Companions
from gaguide.engine.fp32_state import fp32_state
from gaguide.files import replacing_folder


def export_model(
    checkpoint: Path,
    companions: Companions,
    output: Path,
    check: bool = False,
    remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write model (safetensors in `dtype`) and `companions` to `output`; an older export is replaced.

    `checkpoint` is a verified folder, since its state is unpickled. Adapters are merged into their
    base, which is read for it. `check` runs `check_export` before the export takes its place. `remote_code`
    allows a model class from the model's own Python code. Raises `RuntimeError` for values beyond the range
    of `dtype`, and if checkpoint and configuration do not fit together.
    """
    state = fp32_state(checkpoint)
    if companions.adapter is not None:
        base = companions.adapter.build_base()
        state = companions.adapter.merged_into(base, state).state_dict()
        del base
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            deepcopy(companions.config), dtype=torch.float32, trust_remote_code=remote_code
        )
    tied = set(model.all_tied_weights_keys or ())
    weights = {name: _rounded(name, tensor, dtype) for name, tensor in state.items() if name not in tied}
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    wrong = [name for name in missing if name not in tied] + list(unexpected)
    if wrong:
        raise RuntimeError(f"the checkpoint does not fit the model: {', '.join(wrong)}")
    model.config.use_cache = True
    model.config.dtype = dtype
    with replacing_folder(output) as hidden:
        model.save_pretrained(hidden, max_shard_size="5GB")
        _readable(hidden)
        companions.write_tokenizer(hidden)
        if check:
            names = state.keys() - tied
            del state, weights, model  # the check needs memory for a whole model
            check_export(hidden, names)


def export_adapter(checkpoint: Path, companions: Companions, output: Path) -> None:
    """Write the adapters (safetensors in fp32) and the tokenizer to `output`, for PeftModel.from_pretrained.

    An older export is replaced. `checkpoint` is a verified folder of a run that trained adapters.
    """
    assert companions.adapter is not None
    state = fp32_state(checkpoint)
    with replacing_folder(output) as hidden:
        hidden.mkdir()
        companions.adapter.save(hidden, state)
        _readable(hidden)
        companions.write_tokenizer(hidden)


def _readable(folder: Path) -> None:
    """Give weights the access rights of the other files: safetensors lets only their owner read them."""
    rights = next(folder.glob("*.json")).stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(rights)


def _rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` in `dtype`; integers stay unchanged."""
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if bool(torch.isfinite(tensor).all()) and not bool(torch.isfinite(rounded).all()):
        raise RuntimeError(f"{name} has values beyond the range of {str(dtype).removeprefix('torch.')}")
    return rounded


def check_export(folder: Path, names: Collection[str]) -> None:
    """Raise `RuntimeError` unless the folder holds exactly the tensors `names` and a working model."""
    found: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found += file.keys()
    if sorted(found) != sorted(names):
        raise RuntimeError(f"the export holds {len(found)} tensors, the checkpoint {len(names)}")
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, gaps = loaded
    if any(gaps.values()):
        raise RuntimeError(f"the export does not load completely: {gaps}")
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.arange(8)[None]).logits
    if not torch.isfinite(logits).all():
        raise RuntimeError("the exported model computes numbers that are not finite")
