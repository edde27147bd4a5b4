"""Attention maps of chosen layers and heads, at the cost of those heads alone.

The model keeps running in the attention it was loaded with; for a chosen layer the softmax rows of the chosen
heads are computed in addition, from the same queries and keys, with the model's cap on scores and its
attention sinks. They are the probabilities *before* dropout, in fp32, which is what guidance acts on (eager
attention returns them after dropout).

Shapes: B batch, H heads, G key/value heads, h chosen heads, Q query rows kept, T positions, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.model.attention_consumer import AttentionCall, PassHandler, PassInputs
from gaguide.model.attention_hooks import attach_consumer, suspend_observers
from gaguide.model.attention_rows import attention_rows
from gaguide.model.attention_support import causal_attention_modules, unwrap_model


@dataclass(frozen=True)
class AttentionMaps:
    """Attention probabilities of chosen heads."""

    heads: tuple[int, ...]
    """The chosen heads, ascending; `heads[i]` is slot i of every map."""
    queries: tuple[int, int]
    """Query rows kept, [start, stop)."""
    maps: MappingProxyType[int, torch.Tensor]
    """Layer → fp32 [B, h, Q, T] on the CPU; rows of padding queries that see nothing are zero."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The chosen layers, ascending."""
        return tuple(self.maps)

    def head(self, layer: int, head: int, sequence: int = 0) -> torch.Tensor:
        """One head's map [Q, T] for one sequence of the batch."""
        return self.maps[layer][sequence, self.heads.index(head)]

    def part(self, queries: tuple[int, int]) -> AttentionMaps:
        """The rows [start, stop) of the text, which must have been kept, and the columns up to their end."""
        first, (start, stop) = self.queries[0], queries
        maps = {
            layer: map_BhQT[:, :, start - first : stop - first, :stop]
            for layer, map_BhQT in self.maps.items()
        }
        return AttentionMaps(self.heads, queries, MappingProxyType(maps))

    def as_bertviz(self, sequence: int | None = None) -> tuple[torch.Tensor, ...]:
        """A tuple over `layers` of [B, h, T, T], the argument of bertviz's head_view and model_view.

        bertviz shows one sequence: choose it by `sequence` where the batch has several (B becomes 1). It
        numbers layers and heads from 0, so its layer i is `layers[i]` here, and likewise for heads. Raises
        `ValueError` for maps of a window of queries.
        """
        chosen = slice(None) if sequence is None else slice(sequence, sequence + 1)
        for map_BhQT in self.maps.values():
            if map_BhQT.shape[2] != map_BhQT.shape[3]:
                raise ValueError("bertviz needs whole maps: collect without a window of queries")
        return tuple(map_BhQT[chosen] for map_BhQT in self.maps.values())


@dataclass(eq=False)
class Collection:
    """The value of `collecting`: the maps of the model's latest forward pass."""

    heads: tuple[int, ...]
    """The chosen heads, ascending."""
    queries: tuple[int, int] | None
    """Query rows to keep, [start, stop); None keeps all."""
    maps: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer → fp32 [B, h, Q, T] on the CPU, detached."""

    changes_outputs = False

    def start_pass(self, inputs: PassInputs) -> PassHandler:
        """The handler that fills `maps`."""
        return _CollectingPass(self)


class _CollectingPass(PassHandler):
    understands = frozenset({"softcap", "s_aux"})

    def __init__(self, collection: Collection) -> None:
        self.collection: Collection | None = collection

    def observe(self, call: AttentionCall) -> None:
        if self.collection is not None:
            start, stop = self.collection.queries or (0, call.q_BHTD.shape[2])
            with torch.no_grad():
                rows_BhQT = attention_rows(call, self.collection.heads, start, stop)
            self.collection.maps[call.layer] = rows_BhQT.float().cpu()

    def finish(self) -> None:
        self.collection = None


def collect(
    model: PreTrainedModel,
    input_ids_BT: torch.Tensor,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    attention_mask: torch.Tensor | None = None,
    queries: tuple[int, int] | None = None,
) -> AttentionMaps:
    """Run `model` on token ids (int64) and return the maps of `layers` × `heads` (None: all of them).

    attention_mask: [B, T], 1 on tokens and 0 on padding, left or right; positions then count tokens only.
    queries: keep only the query rows [start, stop), for texts whose whole maps would be too large.

    Dropout is off during the pass, and the model is left in the mode it was in. Inside a `guide` block the
    results of the guided pass before it are kept. Raises `UserError` for a model without AttentionInterface,
    a layer, head or window out of range, and ids or lengths that the model does not accept.
    """
    model = unwrap_model(model)
    input_ids_BT = input_ids_BT.to(model.device)
    _check_input(model, input_ids_BT, queries)
    inputs: dict[str, Any] = {"input_ids": input_ids_BT, "use_cache": False}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask = attention_mask.to(model.device)
        # transformers does not derive positions from the mask, and left padding would shift them.
        if "position_ids" in inspect.signature(model.forward).parameters:
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = 1  # the maps need no logits
    with (
        suspend_observers(model),
        collecting(model, layers, heads, queries) as collection,
        _eval_mode(model),
        torch.no_grad(),
    ):
        model(**inputs)
    wanted = range(_n_layers(model)) if layers is None else sorted(set(layers))
    if missing := [layer for layer in wanted if layer not in collection.maps]:
        raise UserError.of(
            "model", f"layers {missing} did not run causal self-attention", "choose other layers"
        )
    return AttentionMaps(
        collection.heads,
        queries or (0, input_ids_BT.shape[1]),
        MappingProxyType({layer: collection.maps[layer] for layer in wanted}),
    )


@contextmanager
def collecting(
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: tuple[int, int] | None = None,
) -> Iterator[Collection]:
    """Inside, each forward pass of `model` fills `.maps`: layer → fp32 [B, h, Q, T] of that pass, detached.

    The model computes as usual, in its mode; the block may be inside or around others that
    collect, measure or guide. On leaving, also by an exception, the model is as before. Raises `UserError`
    for a model without AttentionInterface and for layers and heads that it does not have.
    """
    modules = causal_attention_modules(model)
    model = unwrap_model(model)
    with FaultCollector() as faults:
        n_heads = int(model.config.get_text_config().num_attention_heads)
        chosen_layers = _chosen("layers", layers, _n_layers(model), faults)
        chosen_heads = _chosen("heads", heads, n_heads, faults)
        missing = sorted(set(chosen_layers) - modules.keys())
        if missing and not faults:
            problem = f"{type(model).__name__} has no causal self-attention in layers {missing}"
            faults.add(Fault("layers", problem, "choose other layers"))
    collection = Collection(chosen_heads, queries)
    with attach_consumer(model, chosen_layers, collection):
        yield collection


def _n_layers(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _chosen(what: str, indices: Sequence[int] | None, size: int, faults: FaultCollector) -> tuple[int, ...]:
    if indices is None:
        return tuple(range(size))
    for index in indices:
        if not 0 <= index < size:
            faults.add(Fault(what, f"the model has {size} {what}", f"choose from 0 to {size - 1}", index))
    if not indices:
        faults.add(Fault(what, "none chosen", f"choose from 0 to {size - 1}"))
    return tuple(sorted(set(indices)))


def _check_input(model: PreTrainedModel, input_ids_BT: torch.Tensor, queries: tuple[int, int] | None) -> None:
    if input_ids_BT.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids_BT.shape)}, not [batch, positions]")
    T = input_ids_BT.shape[1]
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    with FaultCollector() as faults:
        if T == 0 or (positions is not None and positions < T):
            faults.add(Fault("text", f"the model accepts 1 to {positions} tokens", "shorten the text", T))
        elif not 0 <= int(input_ids_BT.min()) <= int(input_ids_BT.max()) < config.vocab_size:
            problem = f"has token ids beyond the model's vocabulary ({config.vocab_size})"
            remedy = "use the tokenizer that belongs to the model"
            faults.add(Fault("text", problem, remedy, int(input_ids_BT.max())))
        if queries is not None and not 0 <= queries[0] < queries[1] <= T:
            remedy = f"choose a start and a stop within 0 to {T}"
            faults.add(Fault("window", f"the text has {T} tokens", remedy, queries))


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
