"""One attention function through which everything observes or changes a model's attention, in any nesting.

While a consumer is attached (`attach_consumer`), the model calls the function here in place of its backend's
(attention_backends.py). A layer without consumers calls the backend's with unchanged arguments; in other
layers the consumers' handlers, those of the pass (attention_passes.py), act as attention_consumer.py
describes, and the backend computes what they leave to it.

Shapes: B batch, H heads, G key/value heads, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gaguide.errors import UserError
from gaguide.model.attention_backends import Function, Ungrouped, backend_fault
from gaguide.model.attention_consumer import SOFTMAX_ARGUMENTS, AttentionCall, AttentionConsumer, PassHandler
from gaguide.model.attention_passes import ATTRIBUTE, Attached, Attachments, attachments_by_model
from gaguide.model.attention_support import (
    OBSERVED,
    PACKED,
    causal_attention_modules,
    split_heads,
    unwrap_model,
)
from gaguide.model.documents import by_document, dense_mask, holds_documents
from gaguide.model.head_split import HeadSplit

observed_masks: list[Any] | None = None
"""The mask of each call of our function, while packed.py asks for it."""


@contextmanager
def attach_consumer(model: nn.Module, layers: Sequence[int], consumer: AttentionConsumer) -> Iterator[None]:
    """Inside, `consumer` acts in every forward pass of `model`, in the causal attention of `layers`.

    Blocks may nest and end in any order; after the last one the model is as it was before the first. The
    layers must be among `causal_attention_modules(model)`.
    """
    modules = causal_attention_modules(model)
    model = unwrap_model(model)
    attachments = attachments_by_model.get(id(model))
    if attachments is None:
        if any(vars(module).get(ATTRIBUTE) is not None for module in modules.values()):
            raise UserError.of(
                "model",
                "shares its layers with another model object whose attention is guided or observed",
                "use the same model object in all blocks",
            )
        if fault := next(filter(None, map(backend_fault, modules.values())), None):
            raise UserError(fault)
        attachments = Attachments(model, list(modules.values()), attention)
        attachments.open()
        attachments_by_model[id(model)] = attachments
    attached = Attached(consumer, frozenset(layers))
    attachments.consumers.append(attached)
    try:
        yield
    finally:
        attachments.consumers.remove(attached)
        if not attachments.consumers:
            del attachments_by_model[id(model)]
            attachments.undo.close()


def consumers_of(model: nn.Module) -> tuple[AttentionConsumer, ...]:
    """Consumers attached to the model, in the order in which their blocks were opened."""
    attachments = attachments_by_model.get(id(unwrap_model(model)))
    return () if attachments is None else tuple(attached.consumer for attached in attachments.consumers)


@contextmanager
def suspend_observers(model: nn.Module) -> Iterator[None]:
    """Inside, consumers attached so far that leave the model's outputs unchanged see no forward passes.

    For auxiliary passes, so that the consumers' results stay those of the pass before.
    """
    attachments = attachments_by_model.get(id(unwrap_model(model)))
    observers = attachments.consumers if attachments is not None else []
    suspended = [attached for attached in observers if not attached.consumer.changes_outputs]
    for attached in suspended:
        attached.suspended += 1
    try:
        yield
    finally:
        for attached in suspended:
            attached.suspended -= 1


def attention(
    backend: Function,
    module: nn.Module,
    q_BHTD: torch.Tensor,
    k_BGTD: torch.Tensor,
    v_BGTD: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention function that the model calls, before that of its backend."""
    if observed_masks is not None:
        observed_masks.append(attention_mask)
    if holds_documents(attention_mask):
        backend = by_document(backend)
    attachments: Attachments | None = getattr(module, ATTRIBUTE, None)
    layer: int = module.layer_idx if attachments is not None else -1  # type: ignore[assignment]
    handlers = attachments.handlers_of(layer) if attachments is not None else ()
    if attachments is None or not handlers:
        return backend(
            module, q_BHTD, k_BGTD, v_BGTD, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    _refuse_unsupported(q_BHTD, k_BGTD, kwargs, handlers)
    if q_BHTD.shape[1] != attachments.heads:
        heads = f"layer {layer} runs with {q_BHTD.shape[1]} of {attachments.heads} heads"
        raise UserError(split_heads(f"{heads} (tensor parallelism)"))
    visible: torch.Tensor | None
    if holds_documents(attention_mask):
        visible = dense_mask(attention_mask)
    else:
        visible = attachments.masks.read(module, q_BHTD, attention_mask, kwargs)
    call = AttentionCall(layer, module, q_BHTD, k_BGTD, v_BGTD, visible, dropout, scaling, kwargs)
    for handler in handlers:
        call = handler.transform_inputs(call)
    for handler in handlers:
        handler.observe(call)
    tapped = _tap(call, handlers)
    splits = [(handler, handler.split(layer)) for handler in handlers]
    producing = [(handler, split) for handler, split in splits if split is not None]
    if len(producing) > 1:
        raise RuntimeError(f"{len(producing)} consumers produce the output of heads of layer {layer}")
    weights = None
    if producing:
        out_BTHD = _produce(backend, tapped, attention_mask, *producing[0])
    else:
        qkv = (tapped.q_BHTD, tapped.k_BGTD, tapped.v_BGTD)
        out_BTHD, weights = backend(module, *qkv, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    for handler in handlers:
        out_BTHD = handler.transform_output(call, out_BTHD)
    return out_BTHD, weights


def _tap(call: AttentionCall, handlers: Sequence[PassHandler]) -> AttentionCall:
    """Arguments that only the attention may use: taps change their gradients in place."""
    for handler in handlers:
        call = handler.tap(call)
    return call


def _produce(
    backend: Function, call: AttentionCall, mask: Any, handler: PassHandler, split: HeadSplit
) -> torch.Tensor:
    """Output [B, T, H, D]: the chosen heads by the handler, the rest by the backend with its own mask."""
    chosen, rest = split.divide(call.q_BHTD, call.k_BGTD, call.v_BGTD)
    chosen_BhTD = handler.produce(call, *chosen)
    if not split.rest:
        return chosen_BhTD.transpose(1, 2).contiguous()
    module: Any = Ungrouped(call.module)
    rest_BTHD, _ = backend(module, *rest, mask, dropout=call.dropout, scaling=call.scale, **call.kwargs)
    return split.join(chosen_BhTD.transpose(1, 2), rest_BTHD)


def _refuse_unsupported(
    q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, kwargs: dict[str, Any], handlers: Sequence[PassHandler]
) -> None:
    given = [name for name in kwargs if name in SOFTMAX_ARGUMENTS and kwargs[name] is not None]
    if given and (present := sorted({x for x in given for each in handlers if x not in each.understands})):
        raise UserError.of(
            "model",
            f"its attention uses {', '.join(present)}, which guidance and maps do not cover",
            "use another model",
        )
    if q_BHTD.shape[2] != k_BGTD.shape[2]:
        raise ValueError(
            "guidance and attention maps need whole sequences: call the model with use_cache=False, "
            "without cached keys"
        )


if Version(torch.__version__) < Version("2.13"):
    # torch 2.11's compiler computed wrong gradients here; 2.13 is the oldest version seen to be right.
    # Outside of the graph these layers run as written.
    _produce = torch.compiler.disable(_produce)
    _tap = torch.compiler.disable(_tap)

_packed = partial(attention, sdpa_attention_forward)
AttentionInterface.register(OBSERVED, _packed)
AttentionInterface.register(PACKED, _packed)  # without a mask function
AttentionMaskInterface.register(OBSERVED, sdpa_mask)
