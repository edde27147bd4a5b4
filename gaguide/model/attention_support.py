"""Checks of models and layers: can they be observed and guided?

A model may be wrapped: by `torch.compile`, PEFT, DeepSpeed or DDP. Everything here, and everything built on
it, acts on the transformers model inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from gaguide.errors import Fault, UserError
from gaguide.model.attention_backends import backend_fault

OBSERVED = "gaguide"
"""Name under which attention_hooks.py registers its function on top of SDPA; see packed.py."""
PACKED = f"{OBSERVED}-packed"
"""Name of the same function registered without a mask function."""
CHECKPOINT = "_gradient_checkpointing_func"
"""Attribute in which transformers stores the function that checkpoints a layer."""
_OTHER_MODEL = "choose a model with plain softmax attention"


def unwrap_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, or `model` itself.

    Looks into torch.compile (`_orig_mod`), PEFT (`get_base_model()`), DeepSpeed engines and DDP (`module`).
    Raises `UserError` where there is none.
    """
    inner: Any = model
    for _ in range(8):  # wrappers are nested a few deep
        if isinstance(inner, PreTrainedModel):
            return inner
        if "_orig_mod" in getattr(inner, "_modules", {}):
            inner = inner._orig_mod
        elif callable(getattr(inner, "get_base_model", None)):
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        else:
            break
    raise UserError.of(
        "model",
        f"must be a transformers model, but is a {type(model).__name__}",
        "pass the transformers model that it contains (looked for under _orig_mod, get_base_model() and "
        "module)",
    )


def causal_attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Layer → its causal self-attention module, for the layers that have one, ascending.

    Raises `UserError` for a model that does not use transformers' AttentionInterface, that has an encoder, or
    whose heads are distributed over ranks.
    """
    model = unwrap_model(model)
    name = type(model).__name__
    if not model._can_set_attn_implementation():
        problem = f"{name} does not use transformers' AttentionInterface"
        raise UserError.of("model", problem, "use a model that does")
    if getattr(model.config, "is_encoder_decoder", False):
        problem = f"{name} has an encoder and a decoder, and its input_ids are those of the encoder"
        raise UserError.of("model", problem, "use a decoder-only model")
    ranks = getattr(model, "_tp_size", None) or 1
    if ranks > 1:
        raise UserError(split_heads(f"{name} is tensor-parallel over {ranks} ranks"))
    found = {
        int(vars(module)["layer_idx"]): module
        for module in model.modules()
        if isinstance(vars(module).get("layer_idx"), int)
        and getattr(module, "is_causal", False)  # cross-attention is not
        and hasattr(module, "config")
    }
    return dict(sorted(found.items()))


def split_heads(problem: str) -> Fault:
    """The fault of a model whose heads are split over ranks."""
    remedy = "load it without tp_plan, and use ZeRO or FSDP to distribute its weights"
    return Fault("model", f"{problem}, and each would report its own heads as the first ones", remedy)


def attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Layer → causal self-attention module of a model that can be guided, ascending.

    A hybrid has fewer entries than layers. Raises `UserError` for a model that does not use
    AttentionInterface, has no causal self-attention, or whose softmax is not the plain one, for a backend
    whose masks are not known, and for reentrant checkpointing.
    """
    modules = causal_attention_modules(model)
    model = unwrap_model(model)
    _refuse_architecture(model, list(modules.values()))
    if fault := next(filter(None, map(backend_fault, modules.values())), None):
        raise UserError(fault)
    if checkpoints_reentrantly(model):
        raise UserError(reentrant_fault())
    return modules


def reentrant_fault() -> Fault:
    """The fault of reentrant checkpointing."""
    return Fault(
        "gradient_checkpointing",
        "reentrant checkpointing silently drops the guidance gradient",
        'use gradient_checkpointing_kwargs={"use_reentrant": False}',
    )


def _refuse_architecture(model: PreTrainedModel, modules: list[nn.Module]) -> None:
    name, config = type(model).__name__, model.config.get_text_config()
    if not modules:
        problem = f"{name} has no layer with causal self-attention"
        raise UserError.of("model", problem, "choose a model with attention layers")
    if any(hasattr(module, "sinks") for module in modules):
        problem = f"{name} has attention sinks, which the guided heads' softmax does not have"
        raise UserError.of("model", problem, _OTHER_MODEL)
    if getattr(config, "attn_logit_softcapping", None) is not None:
        problem = f"{name} caps its attention scores, which the guided heads' softmax does not"
        raise UserError.of("model", problem, _OTHER_MODEL)
    if not model._supports_sdpa:
        raise UserError.of("model", f"{name} does not run on SDPA", _OTHER_MODEL)


def checkpoints_reentrantly(model: nn.Module) -> bool:
    """Whether transformers' reentrant checkpointing is enabled anywhere in the model."""
    for module in model.modules():
        function: Callable[..., Any] | None = getattr(module, CHECKPOINT, None)
        keywords = getattr(function, "keywords", None) or {}
        if getattr(module, "gradient_checkpointing", False) and keywords.get("use_reentrant", False):
            return True
    return False
