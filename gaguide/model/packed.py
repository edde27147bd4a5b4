"""Attention without masks for packed blocks: every token of a block sees all earlier ones.

transformers builds a mask in every forward pass even where the result is "causal, no mask". To find that out
it reads a tensor on the host, which waits for a GPU, and under torch.compile it makes a dense mask [B, 1, T,
T], with which no fused kernel runs. An attention function that is registered without a mask function leaves
that path, so SDPA is called with `is_causal=True`.

It also drops masks that are needed: of padding, sliding windows. So a pass uses it only if it was called with
token ids alone, and only at lengths at which an earlier pass with transformers' masks gave no layer a mask.
That is observed, not concluded from the configuration, which says it in many ways.

At these lengths isolated documents need no masks either, but their lengths (documents.py). At others they
are isolated by the masks that transformers makes of positions, which is checked.
"""

from __future__ import annotations

import inspect
import re
import sys
import weakref
from contextlib import ExitStack
from typing import Any

import torch
from transformers import PreTrainedModel

from gaguide.errors import UserError
from gaguide.model import attention_hooks
from gaguide.model.attention_backends import intercepted
from gaguide.model.attention_support import OBSERVED, PACKED, causal_attention_modules
from gaguide.model.documents import document_ids, document_mask, documents_as_mask

MASKLESS = {"input_ids", "labels", "num_items_in_batch", "return_dict", "use_cache"}
"""Arguments of a forward pass that do not change what a token sees."""


class PackedAttention:
    """Chooses the attention of each forward pass of a model; made by `use_packed_attention`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.layers = int(model.config.get_text_config().num_hidden_layers)
        self.maskless: dict[int, bool] = {}
        """Length of a sequence → whether no layer had a mask in a pass of that length."""
        self.isolates = False
        """Whether attention stays inside the documents that positions say."""
        self.compiled = False
        """Whether passes run compiled, where the documents' number must not change: they get a mask."""
        self._running: Any = None
        """The module whose pass is changed: the model, or its base model."""
        self._before: str | None = None
        self._observed: list[Any] | None = None
        self._documents_BT: torch.Tensor | None = None
        self._length = 0

    def begin(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a forward pass: its arguments, or None to leave them."""
        given = {name for name, value in kwargs.items() if value is not None}
        ids_BT = kwargs.get("input_ids")
        if args or ids_BT is None or self._running is not None:
            return None
        if self.isolates and "position_ids" in given and not given & {"attention_mask", "past_key_values"}:
            return self._isolate(model, kwargs)
        if not given <= MASKLESS or kwargs.get("use_cache") is not False:
            return None
        self._running, self._length = model, ids_BT.shape[1]
        self._before = self.model.config._attn_implementation
        known = self.maskless.get(self._length)
        if known is None:
            self._observe()
        elif known:
            self.model.config._attn_implementation = PACKED
        return None

    def _observe(self) -> None:
        self._observed = attention_hooks.observed_masks = []
        self.model.config._attn_implementation = OBSERVED

    def _isolate(self, model: Any, kwargs: dict[str, Any]) -> Any:
        document_BT, length = document_ids(kwargs["position_ids"]), kwargs["input_ids"].shape[1]
        known = self.maskless.get(length)
        if known:
            made = document_mask if self.compiled else documents_as_mask
            return (), {**kwargs, "attention_mask": made(document_BT)}
        if known is None:
            if document_BT.any():
                raise RuntimeError(f"isolate_documents was not called for sequences of {length} tokens")
            return None
        self._running, self._length, self._documents_BT = model, length, document_BT
        self._before = self.model.config._attn_implementation
        self._observe()
        return None

    def end(self, model: Any, *_: Any) -> None:
        """After it, or after it has failed."""
        if model is not self._running:
            return
        self._running, self.model.config._attn_implementation = None, self._before
        observed, self._observed = self._observed, None
        document_BT, self._documents_BT = self._documents_BT, None
        if observed is None:
            return
        attention_hooks.observed_masks = None
        if document_BT is None:
            # Recurrent layers of a hybrid take masks of their own, which are not seen here.
            unmasked = all(mask is None for mask in observed)
            self.maskless[self._length] = len(observed) == self.layers and unmasked
        elif len(observed) < self.layers or not _are_isolated(observed, document_BT):
            problem = (
                f"{type(self.model).__name__} uses masks other than the causal one at {self._length} tokens,"
            )
            problem += " and does not combine them with those of documents"
            remedy = "choose a shorter data.block_length, or false"
            raise UserError.of("data.isolate_documents", problem, remedy, True)

    def learn(self, length: int) -> None:
        """Observe a pass of one sequence of `length` tokens, without consequences.

        Guidance sees nothing of it: its results stay those of the pass before, and marks of tokens belong to
        the batch, not to this sequence.
        """
        device: torch.device = self.model.device
        ids_1T = torch.zeros(1, length, dtype=torch.int64, device=device)
        random = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with torch.no_grad(), random, attention_hooks.suspend_observers(self.model):
            self.model(input_ids=ids_1T, use_cache=False)


def use_packed_attention(model: PreTrainedModel) -> PackedAttention | None:
    """Let `model` leave masks out of passes that need none, from now on; its results do not change.

    None, and nothing happens, for a model whose attention function cannot be chosen by name or is not SDPA.
    """
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return None
    if _compares_names(model):
        return None
    packed = PackedAttention(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            # It compares the ids with the padding's in every pass without a mask, and reads the result.
            module.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[method-assign]
    for module in {model, model.base_model}:  # which may be called without the model
        module.register_forward_pre_hook(packed.begin, with_kwargs=True)
        module.register_forward_hook(packed.end, always_call=True)
    return packed


def isolate_documents(model: PreTrainedModel, packed: PackedAttention | None, length: int) -> None:
    """From now on keep attention inside documents, in passes of `length` tokens with position_ids alone.

    `packed` is the model's `use_packed_attention`. A collective where weights are partitioned: it
    runs a pass. Raises `UserError` for a model in another attention than SDPA.
    """
    name = model.config._attn_implementation
    if name != "sdpa":
        problem, remedy = "cannot isolate documents", 'load the model with attn_implementation="sdpa"'
        raise UserError.of("attn_implementation", problem, remedy, name)
    modules = list(causal_attention_modules(model).values()) if packed is not None else []
    if packed is None or not modules:
        # Such a model's attention is unknown, except that it accepts a mask.
        for module in {model, model.base_model}:
            module.register_forward_pre_hook(_add_mask, with_kwargs=True)
        return
    if length not in packed.maskless:
        packed.learn(length)
    packed.isolates = True
    # For as long as the model lives, since backward calls layers after the pass.
    stack = ExitStack()
    stack.enter_context(intercepted(modules, attention_hooks.attention))
    weakref.finalize(model, stack.close)


def _add_mask(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("position_ids") is None or kwargs.get("attention_mask") is not None:
        return None
    return args, {**kwargs, "attention_mask": document_mask(document_ids(kwargs["position_ids"]))}


def _are_isolated(masks: list[Any], document_BT: torch.Tensor) -> bool:
    """Whether none of the masks lets a document see another."""
    apart = ~document_mask(document_BT)
    distinct = {id(mask): mask for mask in masks}.values()
    return all(
        isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and not (mask & apart).any()
        for mask in distinct
    )


def _compares_names(model: PreTrainedModel) -> bool:
    """Whether the model's code behaves differently if its attention has a name other than "sdpa"."""
    try:
        source = inspect.getsource(sys.modules[type(model).__module__])
    except (OSError, TypeError):
        return True
    return re.search(r"_attn_implementation\s*(==|!=|in|not in)[^\n]*sdpa", source) is not None
