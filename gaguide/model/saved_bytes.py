"""Bytes that autograd keeps of a model's blocks, measured: a forward pass without weights or numbers.

The pass runs on torch's fake tensors, which have sizes and types only, so it costs a moment and no memory
whatever the size of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

_TOKENS, _BLOCKS = 128, 2


@dataclass(frozen=True)
class SavedBytes:
    """Bytes per token that a block keeps for backward, the mean over blocks, with a fused attention and
    without dropout."""

    fp32: int
    """Weights and operations in fp32."""
    half: int
    """Both in 16 bits."""
    autocast: int
    """Weights in fp32, matrix products in 16 bits."""


def saved_bytes(config: PretrainedConfig) -> SavedBytes | None:
    """Those of a causal language model of this configuration; None for a model that fake tensors do not run
    through (one with kernels of its own)."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # which shows what is caught here
    was_off, log.disabled = log.disabled, True
    try:
        config = _shortened(config)
        (fp32, autocast), (half,) = _measure(config, "float32", (False, True)), _measure(config, "bfloat16")
    except Exception:  # whatever a model's code raises for tensors without numbers
        return None
    finally:
        log.disabled = was_off
    return SavedBytes(fp32, half, autocast)


def _shortened(config: PretrainedConfig) -> PretrainedConfig:
    """A copy with two blocks, where all are alike."""
    import torch
    from transformers import AutoModelForCausalLM

    config = deepcopy(config)
    text = config.get_text_config()
    layers = text.num_hidden_layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(config))
    if len({str(block) for block in _blocks(model, layers)}) == 1:
        for name, value in list(vars(text).items()):
            if isinstance(value, list) and len(value) == layers:  # such as layer_types
                setattr(text, name, value[:_BLOCKS])
        text.num_hidden_layers = min(layers, _BLOCKS)
    return config


def _blocks(model: Any, layers: int) -> torch.nn.ModuleList:
    import torch

    return next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers
    )


def _measure(config: PretrainedConfig, dtype: str, autocasts: tuple[bool, ...] = (False,)) -> list[int]:
    """Bytes per token and block with weights of this dtype, with and without autocast."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    from gaguide.model.attention_hooks import PACKED
    from gaguide.model.fast import fuse_activations

    text = config.get_text_config()
    T = min(_TOKENS, int(getattr(text, "max_position_embeddings", None) or _TOKENS))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(
            deepcopy(config), attn_implementation="sdpa", dtype=getattr(torch, dtype)
        ).eval()
        fuse_activations(model)
        if model._can_set_attn_implementation():  # whose masks would be those of a traced model
            model.config._attn_implementation = PACKED
        blocks = _blocks(model, text.num_hidden_layers)
        found = []
        for autocast in autocasts:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                # The difference made by a second sequence, without the 16-bit copies of weights.
                one, two = (_kept(model, blocks, torch.zeros(B, T, dtype=torch.long)) for B in (1, 2))
            found.append(-(-(two - one) // (T * len(blocks))))
    return found


def _kept(model: Any, blocks: torch.nn.ModuleList, ids_BT: torch.Tensor) -> int:
    """Bytes that autograd keeps of the blocks in one forward pass, without the model's own tensors."""
    import torch

    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # references keep their addresses from being reused
    inside = False

    def move(is_inside: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal inside
            inside = is_inside

        return hook

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if inside and storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(move(True)).remove)
            stack.callback(block.register_forward_hook(move(False)).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        model(input_ids=ids_BT, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())
