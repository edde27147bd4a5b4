"""One attention function through which everything observes or changes a model's attention, in any nesting.

While a consumer is attached (`attach_consumer`), the model runs the function registered here with
transformers' AttentionInterface, as "gaguide". A layer without consumers calls transformers' SDPA with
unchanged arguments; in other layers the consumers' handlers act as attention_consumer.py describes.

Handlers belong to a forward pass, not to a model: when gradient checkpointing recomputes a layer during
backward, the handlers of the pass being differentiated run again, whatever passes came in between.
transformers stores the function that checkpoints a layer in `_gradient_checkpointing_func`; a wrapper around
it carries the handlers. Layers checkpointed in another way are recomputed with the handlers of the pass
before; where several passes wait for their backward, that is an error.

A pass begins with the outermost transformers model that is called: the model itself, or its base model. A
copy or a pickle of the model made inside a block is a plain model without consumers.

Shapes: B batch, H heads, G key/value heads, T positions, D head width.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gaguide.errors import Fault, UserError
from gaguide.model.attention_consumer import AttentionCall, AttentionConsumer, PassHandler, PassInputs
from gaguide.model.attention_support import (
    CHECKPOINT,
    IMPLEMENTATION,
    PACKED,
    causal_attention_modules,
    registered_implementation,
    split_heads,
    unwrap_model,
)
from gaguide.model.head_split import CausalModule, HeadSplit

_ATTRIBUTE = "_gaguide"
_REDUCE = "__reduce_ex__"
# Arguments of some models' attention that change the softmax and that no consumer takes into account.
_UNSUPPORTED = ("position_bias", "softcap", "s_aux", "head_mask")


observed_masks: list[bool] | None = None
"""Whether each call of our function had a mask, while packed.py asks for it."""

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
        self.heads = int(model.config.get_text_config().num_attention_heads)
        self.consumers: list[_Attached] = []
        self.handlers: _Handlers = {}
        """Of the pass that is running or being recomputed, else of the last one."""
        self.started: list[PassHandler] = []
        self.running: nn.Module | None = None
        """The outermost model whose forward is running."""
        self.thread = 0
        """The thread in which it runs."""
        self.recomputing = 0
        """Number of checkpoint functions that are running with the handlers of their own pass."""
        self.differentiable = _DifferentiablePasses()
        own = set(map(id, modules))
        # Whoever calls the base model instead of the model starts a pass as well.
        self.models = [
            module
            for module in model.modules()
            if isinstance(module, PreTrainedModel) and any(id(inner) in own for inner in module.modules())
        ]
        self.positional = {id(module): _positional_arguments(module) for module in self.models}
        self.checkpointed = [
            module for module in model.modules() if hasattr(module, "gradient_checkpointing")
        ]
        self.undo = ExitStack()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of a hooked layer have no consumers: None."""
        return type(None), ()

    def open(self) -> None:
        """Make the model call `_attention` and announce its forward passes."""
        with ExitStack() as undo:
            for module in self.modules:
                setattr(module, _ATTRIBUTE, self)
                undo.callback(vars(module).pop, _ATTRIBUTE, None)
            for model in self.models:
                before = model.register_forward_pre_hook(self.begin, with_kwargs=True, prepend=True)
                undo.callback(before.remove)
                undo.callback(model.register_forward_hook(self.end, always_call=True).remove)
                # Found on the instance by copy.deepcopy and pickle.
                vars(model)[_REDUCE] = partial(self._reduce, model)
                undo.callback(vars(model).pop, _REDUCE, None)
            undo.callback(self._restore_checkpoints)
            undo.enter_context(registered_implementation(self.model))
            self.undo = undo.pop_all()

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass of the model or its base model: new handlers."""
        if not torch.compiler.is_compiling():
            self._refuse_threads(model)
        if self.running is not None and self.running is not model and model is not self.model:
            return  # called by the model whose pass this is
        self.running = model
        self.handlers, self.started = {}, []
        given = dict(zip(self.positional[id(model)], args)) | kwargs
        checkpointed = any(module.gradient_checkpointing and module.training for module in self.checkpointed)
        inputs = PassInputs(given.get("input_ids"), given.get("attention_mask"), checkpointed)
        for attached in self.consumers:
            handler = None if attached.suspended else attached.consumer.start_pass(inputs)
            if handler is not None:
                self.started.append(handler)
                for layer in attached.layers:
                    self.handlers[layer] = (*self.handlers.get(layer, ()), handler)
        if not torch.compiler.is_compiling():
            self._carry_handlers_through_checkpoints()
            if torch.is_grad_enabled():
                self.differentiable.add(self.handlers)

    def end(self, model: nn.Module, *_: Any) -> None:
        """After it."""
        if model is not self.running:
            return
        if not torch.compiler.is_compiling() and threading.get_ident() != self.thread:
            return  # of a call that was refused
        self.running = None
        for handler in self.started:
            handler.finish()
        self.started = []

    def handlers_of(self, layer: int) -> tuple[PassHandler, ...]:
        """The handlers that act on a layer which is running now.

        Raises `RuntimeError` where the layer belongs to no known pass, so that they would be another's.
        """
        if self.running is not None or self.recomputing:
            return self.handlers.get(layer, ())
        if not any(layer in attached.layers and not attached.suspended for attached in self.consumers):
            return ()
        task = torch._C._current_graph_task_id()
        if task == -1:
            raise RuntimeError(
                f"layer {layer} runs outside of a forward pass of the model that is guided or observed: "
                "call the model, not its layers"
            )
        return self.differentiable.recomputed(task).get(layer, ())

    def _refuse_threads(self, model: nn.Module) -> None:
        thread = threading.get_ident()
        if id(model) not in self.positional or (self.running is not None and thread != self.thread):
            raise UserError(
                Fault(
                    "model",
                    "runs in several threads or as a replica (DataParallel), which would mix their batches",
                    "use one process for each device (DistributedDataParallel, DeepSpeed, FSDP)",
                )
            )
        self.thread = thread

    def _reduce(self, model: PreTrainedModel, protocol: Any) -> Any:
        """How to copy or pickle the model or its base model: as it is without consumers."""
        self.undo.close()
        try:
            tensors = [*model.parameters(), *model.buffers()]
            plain = deepcopy(model, {id(tensor): tensor for tensor in tensors})
        finally:
            self.open()
        return plain.__reduce_ex__(protocol)

    def _carry_handlers_through_checkpoints(self) -> None:
        # In every pass, for checkpointing may be enabled or disabled inside the block.
        for module in self.checkpointed:
            function = vars(module).get(CHECKPOINT)
            if function is not None and not isinstance(function, _CheckpointWithHandlers):
                setattr(module, CHECKPOINT, _CheckpointWithHandlers(function, self.model))

    def _restore_checkpoints(self) -> None:
        for module in self.checkpointed:
            function = vars(module).get(CHECKPOINT)
            if isinstance(function, _CheckpointWithHandlers):
                setattr(module, CHECKPOINT, function.checkpoint)


class _DifferentiablePasses:
    """Passes that a backward may follow, for layers checkpointed by others than transformers."""

    def __init__(self) -> None:
        self.latest: _Handlers = {}
        self.waiting = 0  # passes since the last backward in which a layer was recomputed
        self.task = -1  # that backward

    def add(self, handlers: _Handlers) -> None:
        self.latest = handlers
        self.waiting += 1

    def recomputed(self, task: int) -> _Handlers:
        """Handlers of the pass that this backward recomputes."""
        if task != self.task:
            if self.waiting > 1:
                raise RuntimeError(
                    f"{self.waiting} forward passes ran before this backward, and layers checkpointed by "
                    "others than transformers do not say to which of them they belong: use the model's "
                    "gradient_checkpointing_enable, or one forward pass for each backward"
                )
            self.task, self.waiting = task, 0
        return self.latest


def _positional_arguments(model: nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(type(model).forward).parameters.values()
    names = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD][1:]  # without self
    return tuple(names) or ("input_ids",)


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
        if torch.compiler.is_compiling():  # the compiler recomputes operations and runs nothing twice
            return self.checkpoint(function, *args, **kwargs)
        model, handlers = self.model, _attached[id(self.model)].handlers

        def run(*inputs: Any, **keywords: Any) -> Any:
            # The block may be closed, or opened again. No reference to it is kept here: consumers hold
            # losses, losses the autograd graph, and the graph this function, a cycle that is never collected.
            attachments = _attached.get(id(model))
            if attachments is None:
                return function(*inputs, **keywords)
            latest, attachments.handlers = attachments.handlers, handlers
            attachments.recomputing += 1
            try:
                return function(*inputs, **keywords)
            finally:
                attachments.handlers = latest
                attachments.recomputing -= 1

        return self.checkpoint(run, *args, **kwargs)


_attached: dict[int, _Attachments] = {}  # by id of the model


@contextmanager
def attach_consumer(model: nn.Module, layers: Sequence[int], consumer: AttentionConsumer) -> Iterator[None]:
    """Inside, `consumer` takes part in every forward pass of `model`, in its causal attention of `layers`.

    Blocks may nest and end in any order; after the last one the model is as it was before the first. The
    layers must be among `causal_attention_modules(model)`.
    """
    modules = causal_attention_modules(model)
    model = unwrap_model(model)
    attachments = _attached.get(id(model))
    if attachments is None:
        if any(vars(module).get(_ATTRIBUTE) is not None for module in modules.values()):
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
    attachments = _attached.get(id(unwrap_model(model)))
    return () if attachments is None else tuple(attached.consumer for attached in attachments.consumers)


@contextmanager
def suspend_observers(model: nn.Module) -> Iterator[None]:
    """Inside, consumers attached so far that leave the model's outputs unchanged see no forward passes.

    For passes that others did not ask for, so that their results stay those of the pass before.
    """
    attachments = _attached.get(id(unwrap_model(model)))
    observers = attachments.consumers if attachments is not None else []
    suspended = [attached for attached in observers if not attached.consumer.changes_outputs]
    for attached in suspended:
        attached.suspended += 1
    try:
        yield
    finally:
        for attached in suspended:
            attached.suspended -= 1


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
    if observed_masks is not None:
        observed_masks.append(attention_mask is not None)
    attachments: _Attachments | None = getattr(module, _ATTRIBUTE, None)
    layer: int = module.layer_idx if attachments is not None else -1  # type: ignore[assignment]
    handlers = attachments.handlers_of(layer) if attachments is not None else ()
    if attachments is None or not handlers:
        return sdpa_attention_forward(
            module, q_BHTD, k_BGTD, v_BGTD, attention_mask, dropout, scaling, **kwargs
        )
    _refuse_unsupported(q_BHTD, k_BGTD, kwargs)
    if q_BHTD.shape[1] != attachments.heads:
        heads = f"layer {layer} runs with {q_BHTD.shape[1]} of {attachments.heads} heads"
        raise UserError(split_heads(f"{heads} (tensor parallelism)"))
    if attention_mask is None and not _is_causal(module, kwargs):
        T = q_BHTD.shape[2]
        attention_mask = torch.ones(1, 1, T, T, dtype=torch.bool, device=q_BHTD.device)
    call = AttentionCall(layer, module, q_BHTD, k_BGTD, v_BGTD, attention_mask, dropout, scaling, kwargs)
    for handler in handlers:
        call = handler.transform_inputs(call)
    for handler in handlers:
        handler.observe(call)
    tapped = _tap(call, handlers)
    splits = [(handler, handler.split(layer)) for handler in handlers]
    producing = [(handler, split) for handler, split in splits if split is not None]
    if len(producing) > 1:
        raise RuntimeError(f"{len(producing)} consumers produce the output of heads of layer {layer}")
    out_BTHD = _produce(tapped, *producing[0]) if producing else _sdpa(tapped)
    for handler in handlers:
        out_BTHD = handler.transform_output(call, out_BTHD)
    return out_BTHD, None


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether SDPA would be causal without a mask."""
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _tap(call: AttentionCall, handlers: Sequence[PassHandler]) -> AttentionCall:
    """Arguments that nothing but the attention may use: it makes the gradients that taps change in place."""
    for handler in handlers:
        call = handler.tap(call)
    return call


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
        CausalModule(),  # type: ignore[arg-type]
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
    _tap = torch.compiler.disable(_tap)

AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionInterface.register(PACKED, _attention)  # without a mask function
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
