"""Which models and layers can be observed and guided, and which attention function their configuration names.

A model may be wrapped: by `torch.compile`, PEFT, DeepSpeed or DDP. Everything here, and everything built on
it, acts on the transformers model inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from gaguide.errors import Fault, UserError

IMPLEMENTATION = "gaguide"
"""Name under which attention_hooks.py registers its function with transformers."""
PACKED = f"{IMPLEMENTATION}-packed"
"""Name of the same function without a function that makes masks; see packed.py."""
CHECKPOINT = "_gradient_checkpointing_func"
"""Attribute in which transformers stores the function that checkpoints a layer."""
_OTHER_MODEL = "choose a model with plain softmax attention"


@dataclass
class _Switch:
    """A configuration that names our function; models may share one."""

    config: PretrainedConfig
    before: str
    users: int = 0


switches: dict[int, _Switch] = {}
"""By id of the configuration; empty unless a consumer is attached."""


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
    raise UserError(
        Fault(
            "model",
            f"must be a transformers model, but is a {type(model).__name__}",
            "pass the transformers model that it contains (looked for under _orig_mod, get_base_model() and "
            "module)",
        )
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
        raise UserError(Fault("model", problem, "use a model that does"))
    if getattr(model.config, "is_encoder_decoder", False):
        problem = f"{name} has an encoder and a decoder, and its input_ids are those of the encoder"
        raise UserError(Fault("model", problem, "use a decoder-only model"))
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
    """The fault of a model of which a rank has some of the heads only."""
    remedy = "load it without tp_plan, and use ZeRO or FSDP to distribute its weights"
    return Fault("model", f"{problem}, and each would report its own heads as the first ones", remedy)


def attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Layer → causal self-attention module of a model that can be guided, ascending.

    A hybrid has fewer entries than layers. Raises `UserError` for a model that does not use
    AttentionInterface or has no causal self-attention, whose softmax is not the plain one, for an attention
    implementation other than SDPA, and for reentrant checkpointing.
    """
    modules = causal_attention_modules(model)
    model = unwrap_model(model)
    _refuse_architecture(model, list(modules.values()))
    switch = switches.get(id(model.config))
    implementation = model.config._attn_implementation if switch is None else switch.before
    if implementation not in ("sdpa", IMPLEMENTATION):  # a copy of a guided model may still name ours
        raise UserError(
            Fault(
                "attn_implementation",
                "must be 'sdpa' to guide a model",
                'load the model with attn_implementation="sdpa" (it uses a flash kernel where there is one)',
                implementation,
            )
        )
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
        raise UserError(Fault("model", problem, "choose a model with attention layers"))
    if any(hasattr(module, "sinks") for module in modules):
        problem = f"{name} has attention sinks, which SDPA and the guided heads' softmax do not have"
        raise UserError(Fault("model", problem, _OTHER_MODEL))
    if getattr(config, "attn_logit_softcapping", None) is not None:
        problem = f"{name} caps its attention scores, which SDPA and the guided heads' softmax do not"
        raise UserError(Fault("model", problem, _OTHER_MODEL))
    if not model._supports_sdpa:
        raise UserError(Fault("model", f"{name} does not run on SDPA", _OTHER_MODEL))


def checkpoints_reentrantly(model: nn.Module) -> bool:
    """Whether transformers' reentrant checkpointing is enabled anywhere in the model."""
    for module in model.modules():
        function: Callable[..., Any] | None = getattr(module, CHECKPOINT, None)
        keywords = getattr(function, "keywords", None) or {}
        if getattr(module, "gradient_checkpointing", False) and keywords.get("use_reentrant", False):
            return True
    return False


@contextmanager
def registered_implementation(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's configuration names our function; several models may share a configuration."""
    before = model.config._attn_implementation
    before = "sdpa" if before == IMPLEMENTATION else before
    switch = switches.setdefault(id(model.config), _Switch(model.config, before))
    switch.users += 1
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        yield
    finally:
        switch.users -= 1
        if switch.users == 0:
            del switches[id(model.config)]
            model.set_attn_implementation(switch.before)
