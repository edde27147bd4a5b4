"""One attention function through which everything observes or changes a model's attention, in any nesting.

While a consumer is attached (`attach_consumer`), the model runs the function registered here with
transformers' AttentionInterface, as "gaguide". A layer without consumers calls transformers' SDPA with
unchanged arguments; in other layers the consumers' handlers act as attention_consumer.py describes.

Handlers belong to a forward pass, not to a model: when gradient checkpointing recomputes a layer during
backward, the handlers of the pass being differentiated run again, whatever passes came in between.
transformers stores the function that checkpoints a layer in `_gradient_checkpointing_func`; a wrapper around
it carries the handlers. Layers checkpointed in another way are recomputed with the handlers of the latest
pass.

Shapes: B batch, H heads, G key/value heads, T positions, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gaguide.errors import Fault, UserError
from gaguide.model.attention_consumer import AttentionCall, AttentionConsumer, PassHandler, PassInputs
from gaguide.model.head_split import HeadSplit

_NAME = "gaguide"
_ATTRIBUTE = "_gaguide"
_CHECKPOINT = "_gradient_checkpointing_func"
# Arguments of some models' attention that change the softmax and that no consumer takes into account.
_UNSUPPORTED = ("position_bias", "softcap", "s_aux", "head_mask")


_Handlers = dict[int, tuple[PassHandler, ...]]  # by layer


@dataclass(eq=False)
class _Attached:
    consumer: AttentionConsumer
    layers: frozenset[int]
    suspended: int = 0  # number of open blocks that suspend it


class _Attachments:
    """All consumers of one model; exists from the first `attach_consumer` block to the end of the last."""

    def __init__(self, model: PreTrainedModel, modules: Sequence[nn.Module]) -> None:
        self.model = model
        self.modules = modules
        self.consumers: list[_Attached] = []
        self.handlers: _Handlers = {}
        """Of the pass that is running or being recomputed, else of the last one."""
        self.started: list[PassHandler] = []
        parameters = inspect.signature(type(model).forward).parameters.values()
        names = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD][1:]  # without self
        self.positional = tuple(names) or ("input_ids",)
        self.checkpointed = [
            module for module in model.modules() if hasattr(module, "gradient_checkpointing")
        ]
        self.undo = ExitStack()

    def open(self) -> None:
        """Make the model call `_attention` and announce its forward passes."""
        with ExitStack() as undo:
            for module in self.modules:
                setattr(module, _ATTRIBUTE, self)
                undo.callback(vars(module).pop, _ATTRIBUTE, None)
            before = self.model.register_forward_pre_hook(self.begin, with_kwargs=True, prepend=True)
            undo.callback(before.remove)
            undo.callback(self.model.register_forward_hook(self.end, always_call=True).remove)
            undo.callback(self._restore_checkpoints)
            undo.enter_context(_registered_implementation(self.model))
            self.undo = undo.pop_all()

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass of the model: new handlers."""
        self.handlers, self.started = {}, []
        given = dict(zip(self.positional, args)) | kwargs
        inputs = PassInputs(given.get("input_ids"), given.get("attention_mask"))
        for attached in self.consumers:
            handler = None if attached.suspended else attached.consumer.start_pass(inputs)
            if handler is not None:
                self.started.append(handler)
                for layer in attached.layers:
                    self.handlers[layer] = (*self.handlers.get(layer, ()), handler)
        if not torch.compiler.is_compiling():
            self._carry_handlers_through_checkpoints()

    def end(self, *_: Any) -> None:
        """After it."""
        for handler in self.started:
            handler.finish()
        self.started = []

    def _carry_handlers_through_checkpoints(self) -> None:
        # In every pass, for checkpointing may be enabled or disabled inside the block.
        for module in self.checkpointed:
            function = vars(module).get(_CHECKPOINT)
            if function is not None and not isinstance(function, _CheckpointWithHandlers):
                setattr(module, _CHECKPOINT, _CheckpointWithHandlers(function, self.model))

    def _restore_checkpoints(self) -> None:
        for module in self.checkpointed:
            function = vars(module).get(_CHECKPOINT)
            if isinstance(function, _CheckpointWithHandlers):
                setattr(module, _CHECKPOINT, function.checkpoint)


class _CheckpointWithHandlers:
    """A layer's checkpoint function whose recomputation runs with the handlers of the original pass."""

    def __init__(self, checkpoint: Callable[..., Any], model: PreTrainedModel) -> None:
        self.checkpoint = checkpoint
        self.model = model

    @property
    def keywords(self) -> dict[str, Any]:
        """Those of the wrapped `functools.partial`, among them `use_reentrant`."""
        return getattr(self.checkpoint, "keywords", {})

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        model, handlers = self.model, _attached[id(self.model)].handlers

        def run(*inputs: Any, **keywords: Any) -> Any:
            # The block may be closed, or opened again. No reference to it is kept here: consumers hold
            # losses, losses the autograd graph, and the graph this function, a cycle that is never collected.
            attachments = _attached.get(id(model))
            if attachments is None:
                return function(*inputs, **keywords)
            latest, attachments.handlers = attachments.handlers, handlers
            try:
                return function(*inputs, **keywords)
            finally:
                attachments.handlers = latest

        return self.checkpoint(run, *args, **kwargs)


@dataclass
class _Switch:
    """A configuration that names our function; models may share one."""

    config: PretrainedConfig
    before: str
    users: int = 0


_attached: dict[int, _Attachments] = {}  # by id of the model
_switches: dict[int, _Switch] = {}  # by id of the configuration


@contextmanager
def attach_consumer(
    model: PreTrainedModel, layers: Sequence[int], consumer: AttentionConsumer
) -> Iterator[None]:
    """Inside, `consumer` takes part in every forward pass of `model`, in its causal attention of `layers`.

    Blocks may nest and end in any order; after the last one the model is as it was before the first. The
    layers must be among `causal_attention_modules(model)`.
    """
    modules = causal_attention_modules(model)
    attachments = _attached.get(id(model))
    if attachments is None:
        if any(_ATTRIBUTE in vars(module) for module in modules.values()):
            raise UserError(
                Fault(
                    "model",
                    "shares its layers with another model object whose attention is guided or observed",
                    "use the same model object in all blocks",
                )
            )
        attachments = _Attachments(model, list(modules.values()))
        attachments.open()
        _attached[id(model)] = attachments
    attached = _Attached(consumer, frozenset(layers))
    attachments.consumers.append(attached)
    try:
        yield
    finally:
        attachments.consumers.remove(attached)
        if not attachments.consumers:
            del _attached[id(model)]
            attachments.undo.close()


def consumers_of(model: nn.Module) -> tuple[AttentionConsumer, ...]:
    """Consumers attached to the model, in the order in which their blocks were opened."""
    attachments = _attached.get(id(model))
    return () if attachments is None else tuple(attached.consumer for attached in attachments.consumers)


@contextmanager
def suspend_observers(model: nn.Module) -> Iterator[None]:
    """Inside, consumers attached so far that leave the model's outputs unchanged see no forward passes.

    For passes that others did not ask for, so that their results stay those of the pass before.
    """
    attachments = _attached.get(id(model))
    observers = attachments.consumers if attachments is not None else []
    suspended = [attached for attached in observers if not attached.consumer.changes_outputs]
    for attached in suspended:
        attached.suspended += 1
    try:
        yield
    finally:
        for attached in suspended:
            attached.suspended -= 1


@contextmanager
def _registered_implementation(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's configuration names our function; several models may share a configuration."""
    switch = _switches.setdefault(id(model.config), _Switch(model.config, model.config._attn_implementation))
    switch.users += 1
    try:
        model.set_attn_implementation(_NAME)
        yield
    finally:
        switch.users -= 1
        if switch.users == 0:
            del _switches[id(model.config)]
            model.set_attn_implementation(switch.before)


def causal_attention_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Layer → its causal self-attention module, for the layers that have one.

    Raises `UserError` for a model that does not use transformers' AttentionInterface.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            Fault(
                "model",
                f"must be a transformers model, but is a {type(model).__name__}",
                "unwrap it (e.g. engine.module)",
            )
        )
    if not model._can_set_attn_implementation():
        raise UserError(
            Fault(
                "model",
                f"{type(model).__name__} does not use transformers' AttentionInterface",
                "use a model that does",
            )
        )
    found = {
        int(vars(module)["layer_idx"]): module
        for module in model.modules()
        if isinstance(vars(module).get("layer_idx"), int)
        and getattr(module, "is_causal", False)  # cross-attention is not
        and hasattr(module, "config")
    }
    return dict(sorted(found.items()))


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The causal self-attention module of every layer of a model that can be guided, in order.

    Raises `UserError` for a model that does not use AttentionInterface or has layers without causal
    self-attention, for an attention implementation other than SDPA, and for reentrant checkpointing.
    """
    modules = causal_attention_modules(model)
    switch = _switches.get(id(model.config))
    implementation = model.config._attn_implementation if switch is None else switch.before
    if implementation != "sdpa":
        raise UserError(
            Fault(
                "attn_implementation",
                "must be 'sdpa' to guide a model",
                'load the model with attn_implementation="sdpa" (it uses a flash kernel where there is one)',
                implementation,
            )
        )
    if _checkpoints_reentrantly(model):
        raise UserError(
            Fault(
                "gradient_checkpointing",
                "reentrant checkpointing silently drops the guidance gradient",
                'use gradient_checkpointing_kwargs={"use_reentrant": False}',
            )
        )
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    if list(modules) != list(range(n_layers)):
        raise UserError(
            Fault(
                "model",
                f"{type(model).__name__} has {n_layers} layers, but causal attention modules were found for "
                f"{list(modules)}",
                "use a decoder with one causal self-attention module per layer",
            )
        )
    return list(modules.values())


def _checkpoints_reentrantly(model: nn.Module) -> bool:
    for module in model.modules():
        function: Callable[..., Any] | None = getattr(module, _CHECKPOINT, None)
        keywords = getattr(function, "keywords", None) or {}
        if getattr(module, "gradient_checkpointing", False) and keywords.get("use_reentrant", False):
            return True
    return False


def _attention(
    module: nn.Module,
    q_BHTD: torch.Tensor,
    k_BGTD: torch.Tensor,
    v_BGTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention function registered as "gaguide"."""
    attachments: _Attachments | None = getattr(module, _ATTRIBUTE, None)
    layer: int = module.layer_idx if attachments is not None else -1  # type: ignore[assignment]
    handlers = attachments.handlers.get(layer, ()) if attachments is not None else ()
    if not handlers:
        return sdpa_attention_forward(
            module, q_BHTD, k_BGTD, v_BGTD, attention_mask, dropout, scaling, **kwargs
        )
    _refuse_unsupported(q_BHTD, k_BGTD, kwargs)
    call = AttentionCall(layer, module, q_BHTD, k_BGTD, v_BGTD, attention_mask, dropout, scaling, kwargs)
    for handler in handlers:
        call = handler.transform_inputs(call)
    for handler in handlers:
        handler.observe(call)
    producing = [(handler, split) for handler in handlers if (split := handler.split(layer)) is not None]
    if len(producing) > 1:
        raise RuntimeError(f"{len(producing)} consumers produce the output of heads of layer {layer}")
    out_BTHD = _produce(call, *producing[0]) if producing else _sdpa(call)
    for handler in handlers:
        out_BTHD = handler.transform_output(call, out_BTHD)
    return out_BTHD, None


def _sdpa(call: AttentionCall) -> torch.Tensor:
    return sdpa_attention_forward(
        call.module,
        call.q_BHTD,
        call.k_BGTD,
        call.v_BGTD,
        call.mask,
        call.dropout,
        call.scaling,
        **call.kwargs,
    )[0]


def _produce(call: AttentionCall, handler: PassHandler, split: HeadSplit) -> torch.Tensor:
    """Output [B, T, H, D]: the chosen heads by the handler, the rest by SDPA."""
    chosen, (rest_q, rest_k, rest_v) = split.divide(call.q_BHTD, call.k_BGTD, call.v_BGTD)
    chosen_BhTD = handler.produce(call, *chosen)
    if not split.rest:
        return chosen_BhTD.transpose(1, 2).contiguous()
    rest_BTHD, _ = sdpa_attention_forward(
        split.rest_module,  # type: ignore[arg-type]
        rest_q,
        rest_k,
        rest_v,
        call.mask,
        call.dropout,
        call.scale,
        **call.kwargs,
    )
    return split.join(chosen_BhTD.transpose(1, 2), rest_BTHD)


def _refuse_unsupported(q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, kwargs: dict[str, Any]) -> None:
    present = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if present:
        raise UserError(
            Fault(
                "model",
                f"its attention uses {', '.join(present)}, which guidance and attention maps do not cover",
                "use another model",
            )
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

AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
