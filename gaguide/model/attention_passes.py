"""Which consumers' handlers act in a layer: those of its forward pass, also where backward recomputes it.

Handlers belong to a forward pass, not to a model: when gradient checkpointing recomputes a layer during
backward, the handlers of the pass being differentiated run again, whatever passes came in between.
transformers stores the function that checkpoints a layer in `_gradient_checkpointing_func`; a wrapper around
it carries the handlers. Layers checkpointed in another way are recomputed with the handlers of the pass
before; where several passes wait for their backward, that is an error.

A pass begins with the outermost transformers model that is called: the model itself, or its base model. A
copy or a pickle of the model made inside a block is a plain model without consumers.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gaguide.errors import UserError
from gaguide.model.attention_backends import Function, MaskReader, intercepted
from gaguide.model.attention_consumer import AttentionConsumer, PassHandler, PassInputs
from gaguide.model.attention_support import CHECKPOINT

ATTRIBUTE = "_gaguide"
"""Attribute of an attention module that holds its model's attachments."""
_REDUCE = "__reduce_ex__"

Handlers = dict[int, tuple[PassHandler, ...]]
"""Layer → its handlers."""


@dataclass(eq=False)
class Attached:
    """A consumer that is attached, from the start to the end of its `with` block."""

    consumer: AttentionConsumer
    """The observer or modifier."""
    layers: frozenset[int]
    """The layers it is attached to."""
    suspended: int = 0
    """Number of open blocks that suspend it."""


class Attachments:
    """All consumers of one model; exists from the first `attach_consumer` block to the end of the last."""

    def __init__(self, model: PreTrainedModel, modules: Sequence[nn.Module], function: Function) -> None:
        """`function` is called for the attention of the modules, as in `intercepted`."""
        self.model = model
        self.modules = modules
        self.function = function
        self.heads = int(model.config.get_text_config().num_attention_heads)
        self.consumers: list[Attached] = []
        self.handlers: Handlers = {}
        """Handlers of the pass that is running or being recomputed, else of the last one."""
        self.started: list[PassHandler] = []
        self.masks = MaskReader()
        """Reads the masks of that pass."""
        self.running: nn.Module | None = None
        """The outermost model whose forward is running."""
        self.thread = 0
        """The thread in which it runs."""
        self.recomputing = 0
        """Number of checkpoint functions that are running with the handlers of their own pass."""
        self.differentiable = _DifferentiablePasses()
        own = set(map(id, modules))
        # A call of the base model instead of the model starts a pass as well.
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
        """Let the model call the function and announce its forward passes."""
        with ExitStack() as undo:
            for module in self.modules:
                setattr(module, ATTRIBUTE, self)
                undo.callback(vars(module).pop, ATTRIBUTE, None)
            for model in self.models:
                before = model.register_forward_pre_hook(self.begin, with_kwargs=True, prepend=True)
                undo.callback(before.remove)
                undo.callback(model.register_forward_hook(self.end, always_call=True).remove)
                # Found on the instance by copy.deepcopy and pickle.
                vars(model)[_REDUCE] = partial(self._reduce, model)
                undo.callback(vars(model).pop, _REDUCE, None)
            undo.callback(self._restore_checkpoints)
            undo.enter_context(intercepted(self.modules, self.function))
            self.undo = undo.pop_all()

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make new handlers; called before a forward pass of the model or its base model."""
        if not torch.compiler.is_compiling():
            self._refuse_threads(model)
        if self.running is not None and self.running is not model and model is not self.model:
            return  # called by the model whose pass this is
        self.running = model
        self.handlers, self.started, self.masks = {}, [], MaskReader()
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
            raise UserError.of(
                "model",
                "runs in several threads or as a replica (DataParallel), which would mix their batches",
                "use one process for each device (DistributedDataParallel, DeepSpeed, FSDP)",
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
        self.latest: Handlers = {}
        self.waiting = 0  # passes since the last backward in which a layer was recomputed
        self.task = -1  # that backward

    def add(self, handlers: Handlers) -> None:
        self.latest = handlers
        self.waiting += 1

    def recomputed(self, task: int) -> Handlers:
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
        model, handlers = self.model, attachments_by_model[id(self.model)].handlers

        def run(*inputs: Any, **keywords: Any) -> Any:
            # The block may be closed, or opened again. No reference to it is kept here: consumers hold
            # losses, losses the autograd graph, and the graph this function, a cycle that is never collected.
            attachments = attachments_by_model.get(id(model))
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


attachments_by_model: dict[int, Attachments] = {}
"""Id of the model → its attachments; empty unless a consumer is attached."""
