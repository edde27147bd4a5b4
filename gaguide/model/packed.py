"""Attention without masks for packed blocks: every token of a block sees all earlier ones.

transformers builds a mask in every forward pass even where the result is "causal, no mask". To find that out
it reads a tensor on the host, which waits for a GPU, and under torch.compile it makes a dense mask [B, 1, T,
T], with which no fused kernel runs. An attention function that is registered without a mask function leaves
that path, so SDPA is called with `is_causal=True`.

It also drops masks that are needed: of padding, isolated documents, sliding windows. So a pass uses it only
if it was called with token ids alone, and only at lengths at which an earlier pass with transformers' masks
gave no layer a mask. That is observed, not concluded from the configuration, which says it in many ways.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import torch
from transformers import PreTrainedModel

from gaguide.model import attention_hooks
from gaguide.model.attention_support import IMPLEMENTATION, PACKED

MASKLESS = {"input_ids", "labels", "num_items_in_batch", "return_dict", "use_cache"}
"""Arguments of a forward pass that do not change what a token sees."""


class PackedAttention:
    """Chooses the attention of each forward pass of a model; made by `use_packed_attention`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.layers = int(model.config.get_text_config().num_hidden_layers)
        self.maskless: dict[int, bool] = {}
        """Length of a sequence → whether no layer had a mask in a pass of that length."""
        self._before: str | None = None
        self._observed: list[bool] | None = None
        self._length = 0

    def begin(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass."""
        given = {name for name, value in kwargs.items() if value is not None}
        ids_BT = kwargs.get("input_ids")
        if args or not given <= MASKLESS or kwargs.get("use_cache") is not False or ids_BT is None:
            return
        self._before, self._length = self.model.config._attn_implementation, ids_BT.shape[1]
        known = self.maskless.get(self._length)
        if known is None:
            self._observed = attention_hooks.observed_masks = []
            self.model.config._attn_implementation = IMPLEMENTATION
        elif known:
            self.model.config._attn_implementation = PACKED

    def end(self, *_: Any) -> None:
        """After it, or after it has failed."""
        if self._before is None:
            return
        self.model.config._attn_implementation, self._before = self._before, None
        if self._observed is not None:
            # Recurrent layers of a hybrid take masks of their own, which are not seen here.
            self.maskless[self._length] = len(self._observed) == self.layers and not any(self._observed)
            self._observed = attention_hooks.observed_masks = None

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
            module.warn_if_padding_and_no_attention_mask = _do_nothing  # type: ignore[method-assign]
    model.register_forward_pre_hook(packed.begin, with_kwargs=True)
    model.register_forward_hook(packed.end, always_call=True)
    return packed


def _do_nothing(*_: Any) -> None:
    pass


def _compares_names(model: PreTrainedModel) -> bool:
    """Whether the model's code does something else where its attention has another name than "sdpa"."""
    try:
        source = inspect.getsource(sys.modules[type(model).__module__])
    except (OSError, TypeError):
        return True
    return re.search(r"_attn_implementation\s*(==|!=|in|not in)\W*sdpa", source) is not None
