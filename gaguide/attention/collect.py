"""Attention maps of chosen layers and heads, at the cost of those heads alone.

The model keeps running in its scaled-dot-product attention; for a chosen layer the softmax rows of the
chosen heads are computed beside it from the same queries and keys. They are the probabilities *before*
dropout, in fp32, which is what guidance acts on (eager attention returns them after dropout).

Shapes: B batch, H heads, G key/value heads, h chosen heads, Q query rows kept, T positions, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gaguide.errors import Fault, UserError

_NAME = "gaguide-collect"
_ATTRIBUTE = "_gaguide_collect"
# Arguments of some models' attention that change the softmax; leaving them out would give wrong maps.
_UNSUPPORTED = ("position_bias", "softcap", "s_aux", "head_mask")


@dataclass(frozen=True)
class AttentionMaps:
    """Attention probabilities of chosen heads.

    maps: layer → fp32 [B, h, Q, T] on the CPU; head `heads[i]` is slot i. Rows of padding queries that see
        nothing are zero.
    queries: the query rows kept, [start, stop); all of them unless a window was asked for.
    """

    heads: tuple[int, ...]
    queries: tuple[int, int]
    maps: MappingProxyType[int, torch.Tensor]

    @property
    def layers(self) -> tuple[int, ...]:
        """The chosen layers, ascending."""
        return tuple(self.maps)

    def head(self, layer: int, head: int, sequence: int = 0) -> torch.Tensor:
        """One head's map [Q, T] for one sequence of the batch."""
        return self.maps[layer][sequence, self.heads.index(head)]

    def as_bertviz(self, sequence: int | None = None) -> tuple[torch.Tensor, ...]:
        """A tuple over `layers` of [B, h, T, T], as bertviz's head_view and model_view take it.

        bertviz shows one sequence: choose it by `sequence` where the batch holds several (B becomes 1). Its
        own numbering starts at 0 again, so layer i there is `layers[i]` here, and likewise for heads.
        """
        chosen = slice(None) if sequence is None else slice(sequence, sequence + 1)
        for map_BhQT in self.maps.values():
            if map_BhQT.shape[2] != map_BhQT.shape[3]:
                raise ValueError("bertviz takes whole maps: collect without a window of queries")
        return tuple(map_BhQT[chosen] for map_BhQT in self.maps.values())


@dataclass
class _Collection:
    """What the chosen attention modules write into during forward passes."""

    heads: tuple[int, ...]
    queries: tuple[int, int] | None
    maps: dict[int, torch.Tensor]


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

    Dropout is off during the pass and the model is left in the mode it came in. Raises `UserError` for a
    model without AttentionInterface, a layer, head or window out of range, and ids or lengths that the
    model does not take.
    """
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
    with collecting(model, layers, heads, queries) as collection, _eval_mode(model), torch.no_grad():
        model(**inputs)
        maps = dict(collection.maps)
        wanted = _chosen("layers", layers, _n_layers(model), [])
        if sorted(maps) != list(wanted):
            missing = sorted(set(wanted) - set(maps))
            raise UserError(
                Fault("model", f"layers {missing} did not run causal self-attention", "choose other layers")
            )
    return AttentionMaps(
        collection.heads,
        queries or (0, input_ids_BT.shape[1]),
        MappingProxyType({layer: maps[layer] for layer in sorted(maps)}),
    )


@contextmanager
def collecting(
    model: PreTrainedModel,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: tuple[int, int] | None = None,
) -> Iterator[_Collection]:
    """Inside, each forward pass of `model` fills `.maps`: layer → fp32 [B, h, Q, T] of that pass, detached.

    The model computes what it would anyway, in its mode; on leaving, also by an exception, it is as before.
    """
    name = type(model).__name__
    if not model._can_set_attn_implementation():
        raise UserError(
            Fault("model", f"{name} does not use transformers' AttentionInterface", "use a model that does")
        )
    modules = _attention_modules(model)
    faults: list[Fault] = []
    n_heads = int(model.config.get_text_config().num_attention_heads)
    chosen_layers = _chosen("layers", layers, _n_layers(model), faults)
    chosen_heads = _chosen("heads", heads, n_heads, faults)
    if not faults and not set(chosen_layers) <= modules.keys():
        missing = sorted(set(chosen_layers) - modules.keys())
        faults.append(
            Fault("layers", f"{name} has no causal self-attention in layers {missing}", "choose other layers")
        )
    if faults:
        raise UserError(faults)
    collection = _Collection(chosen_heads, queries, {})
    before = model.config._attn_implementation
    for layer in chosen_layers:
        setattr(modules[layer], _ATTRIBUTE, collection)
    try:
        model.set_attn_implementation(_NAME)
        yield collection
    finally:
        model.set_attn_implementation(before)
        for layer in chosen_layers:
            vars(modules[layer]).pop(_ATTRIBUTE, None)


def _attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Layer → its causal self-attention module (cross-attention is not causal)."""
    return {
        int(vars(module)["layer_idx"]): module
        for module in model.modules()
        if isinstance(vars(module).get("layer_idx"), int)
        and getattr(module, "is_causal", False)
        and hasattr(module, "config")
    }


def _n_layers(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _chosen(what: str, indices: Sequence[int] | None, size: int, faults: list[Fault]) -> tuple[int, ...]:
    if indices is None:
        return tuple(range(size))
    faults += [
        Fault(what, f"the model has {size} {what}", f"choose from 0 to {size - 1}", index)
        for index in indices
        if not 0 <= index < size
    ]
    if not indices:
        faults.append(Fault(what, "none chosen", f"choose from 0 to {size - 1}"))
    return tuple(sorted(set(indices)))


def _check_input(model: PreTrainedModel, input_ids_BT: torch.Tensor, queries: tuple[int, int] | None) -> None:
    faults = []
    if input_ids_BT.ndim != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids_BT.shape)}, not [batch, positions]")
    T = input_ids_BT.shape[1]
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if T == 0 or (positions is not None and positions < T):
        faults.append(Fault("text", f"the model takes 1 to {positions} tokens", "shorten the text", T))
    elif not 0 <= int(input_ids_BT.min()) <= int(input_ids_BT.max()) < config.vocab_size:
        faults.append(
            Fault(
                "text",
                f"has token ids beyond the model's vocabulary ({config.vocab_size})",
                "use the tokenizer that belongs to the model",
                int(input_ids_BT.max()),
            )
        )
    if queries is not None and not 0 <= queries[0] < queries[1] <= T:
        faults.append(
            Fault("window", f"the text has {T} tokens", f"choose a start and a stop within 0 to {T}", queries)
        )
    if faults:
        raise UserError(faults)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _attention(
    module: nn.Module,
    q_BHTD: torch.Tensor,
    k_BGTD: torch.Tensor,
    v_BGTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The registered attention function: SDPA, and beside it the rows of a chosen layer's chosen heads."""
    collection: _Collection | None = vars(module).get(_ATTRIBUTE)
    if collection is not None:
        present = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
        if present:
            problem = f"its attention uses {', '.join(present)}, which attention maps do not cover"
            raise UserError(Fault("model", problem, "look at another model"))
        if q_BHTD.shape[2] != k_BGTD.shape[2]:
            raise ValueError("attention maps need whole sequences: call the model with use_cache=False")
        scale = q_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
        collection.maps[module.layer_idx] = _rows(  # type: ignore[index]
            q_BHTD, k_BGTD, attention_mask, scale, collection
        )
    return sdpa_attention_forward(module, q_BHTD, k_BGTD, v_BGTD, attention_mask, dropout, scaling, **kwargs)


@torch.no_grad()
def _rows(
    q_BHTD: torch.Tensor,
    k_BGTD: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    collection: _Collection,
) -> torch.Tensor:
    """fp32 softmax rows [B, h, Q, T]; `mask` [B or 1, 1 or H, T, T] is bool or additive; None is causal."""
    heads = torch.tensor(collection.heads, device=q_BHTD.device)
    groups = q_BHTD.shape[1] // k_BGTD.shape[1]
    T = q_BHTD.shape[2]
    start, stop = collection.queries or (0, T)
    # Autocast would take the product back to half precision.
    with torch.autocast(q_BHTD.device.type, enabled=False):
        q_BhQD = q_BHTD[:, :, start:stop].index_select(1, heads).float()
        k_BhTD = k_BGTD.index_select(1, heads // groups).float()
        s_BhQT = (q_BhQD @ k_BhTD.mT) * scale
        if mask is None:
            hidden = torch.ones(stop - start, T, dtype=torch.bool, device=s_BhQT.device).triu_(start + 1)
        else:
            rows = (mask if mask.shape[1] == 1 else mask.index_select(1, heads))[:, :, start:stop, :T]
            if rows.dtype == torch.bool:
                hidden = ~rows
            else:  # additive: biases are small, what is hidden is near the lowest number there is
                s_BhQT, hidden = s_BhQT + rows.float(), rows < torch.finfo(rows.dtype).min / 2
        # A row that sees nothing is all -inf: its softmax is NaN, its attention none.
        return torch.softmax(s_BhQT.masked_fill_(hidden, -torch.inf), -1).nan_to_num_(nan=0.0).cpu()


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
