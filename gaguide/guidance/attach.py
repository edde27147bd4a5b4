"""`guide`: attach a plan to a model for the length of a `with` block, and read its loss after each forward.

It hooks in through transformers' AttentionInterface, so that it holds for every model built on it. Heads
that the plan does not name keep running in the model's own scaled-dot-product attention.

Shapes: B batch, H heads, G key/value heads, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gaguide.errors import Fault, UserError
from gaguide.guidance.backend import guided_attention
from gaguide.guidance.heads import HeadSplit
from gaguide.guidance.kernel import guidance_dtype, measure_attention
from gaguide.guidance.plan import GuidancePlan, GuidedHead
from gaguide.guidance.targets import RowTerms, row_terms

_NAME = "gaguide"
_PerHead = dict[tuple[int, int], torch.Tensor]
# What some models hand to their attention function and our rows of H would leave out.
_UNSUPPORTED = ("position_bias", "softcap", "s_aux", "head_mask")


@dataclass(frozen=True)
class _Layer:
    """What the attention module of a guided layer needs to know."""

    guidance: Guidance
    index: int
    split: HeadSplit
    heads: tuple[GuidedHead, ...]


@dataclass(frozen=True)
class _Measured:
    """A layer's guided heads in the last forward pass, in order of the heads."""

    loss_h: torch.Tensor
    mass_h: torch.Tensor
    queries_h: torch.Tensor


class Guidance:
    """Losses of the guided heads in the model's last forward pass; made by `guide`."""

    def __init__(self, plan: GuidancePlan, heads: dict[tuple[int, int], GuidedHead], measure_only: bool):
        self.plan = plan
        self.heads = MappingProxyType(heads)
        self.weight = plan.weight
        """Factor of `loss()`; a schedule may set it before each step."""
        self.measure_only = measure_only
        self.enabled = True
        """False lets forward passes run unguided and unmeasured, at no cost."""
        self._measured: dict[int, _Measured] = {}
        self._inputs: _Inputs | None = None
        self._head_weights = torch.tensor([head.weight for head in heads.values()], dtype=torch.float64)

    def loss(self) -> torch.Tensor:
        """Eq. (4) times the plan's weight, a scalar of the guidance dtype with gradients to q and k.

        A constant zero when the plan is only measured.
        """
        losses_N = torch.cat([layer.loss_h for layer in self._layers()])
        # Where the model is: the copy of a few numbers need not be waited for.
        self._head_weights = self._head_weights.to(losses_N, non_blocking=True)
        total = (losses_N * self._head_weights).sum()
        if self.measure_only:
            return torch.zeros_like(total)
        return self.weight * total

    def per_head(self) -> _PerHead:
        """(layer, head) → that head's loss before any weight, of the last forward pass."""
        return self._by_head([layer.loss_h for layer in self._layers()])

    def attention(self) -> _PerHead:
        """(layer, head) → attention mass on its targets, averaged over the queries that can see one.

        In [0, 1]; NaN where no query of the batch sees a target.
        """
        return self._by_head([layer.mass_h for layer in self._layers()])

    def queries(self) -> _PerHead:
        """(layer, head) → how many queries of the last forward pass can see a target."""
        return self._by_head([layer.queries_h for layer in self._layers()])

    def attention_sums(self) -> torch.Tensor:
        """[2, N], fp64, of the N heads in order of (layer, head): mass summed over queries, and the queries.

        Sums over batches and ranks give a mean that counts every query once.
        """
        masses_N = torch.cat([layer.mass_h for layer in self._layers()]).double()
        queries_N = torch.cat([layer.queries_h for layer in self._layers()]).double()
        return torch.stack([masses_N.nan_to_num() * queries_N, queries_N])

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, forward passes are only measured, whatever the block was opened for."""
        before = self.measure_only, self.enabled
        self.measure_only, self.enabled = True, True
        try:
            yield
        finally:
            self.measure_only, self.enabled = before

    def mean_attention(self) -> torch.Tensor:
        """Mean of `attention()` over the heads that saw a target (NaN where none did)."""
        return torch.stack(list(self.attention().values())).nanmean()

    def _layers(self) -> list[_Measured]:
        """The guided layers of the last forward pass, in order."""
        if self._measured.keys() != {layer for layer, _ in self.heads}:
            raise RuntimeError("no guided forward pass has run inside this `with guide(...)` block")
        return [self._measured[layer] for layer in sorted(self._measured)]

    def _by_head(self, values_h: list[torch.Tensor]) -> _PerHead:
        return dict(zip(self.heads, (value for layer in values_h for value in layer.unbind())))

    def _open(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward of the whole model: forget the last pass, take note of this one's inputs."""
        self._measured, self._inputs = {}, None
        ids_BT = kwargs.get("input_ids", args[0] if args else None)
        if not self.enabled:
            return
        if ids_BT is None:
            raise ValueError(
                "guidance needs input_ids: patterns are found in token ids, not in inputs_embeds"
            )
        mask = kwargs.get("attention_mask")
        valid_BT = mask.bool() if mask is not None and mask.ndim == 2 else torch.ones_like(ids_BT).bool()
        self._inputs = _Inputs(ids_BT, valid_BT)

    def _close(self, *_: Any) -> None:
        """After the forward: what gradient checkpointing recomputes from here on is no new pass."""
        if self._inputs is not None:
            self._inputs.closed = True

    def _record(self, layer: _Layer, loss_h: torch.Tensor, mass_h: torch.Tensor, terms: RowTerms) -> None:
        if self._inputs is not None and not self._inputs.closed:
            self._measured[layer.index] = _Measured(loss_h, mass_h.detach(), terms.queries_h)


class _Inputs:
    """One forward pass: token ids, which of them are no padding, and the row terms made from them."""

    def __init__(self, ids_BT: torch.Tensor, valid_BT: torch.Tensor):
        self.ids_BT, self.valid_BT = ids_BT, valid_BT
        self.closed = False
        self._terms: dict[tuple[Any, ...], RowTerms] = {}
        self._masks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def visible(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The model's 4-D mask [B or 1, 1, T, T] as bool [B or 1, T, T]; None stays None (causal)."""
        if attention_mask is None:
            return None
        # Layers share the model's mask object; holding it keeps its id from being used again.
        if id(attention_mask) not in self._masks:
            mask = attention_mask[:, 0]
            if mask.stride(0) == 0:
                mask = mask[:1]  # one for all sequences, which a kernel would copy for each
            self._masks[id(attention_mask)] = attention_mask, mask if mask.dtype == torch.bool else mask >= 0
        return self._masks[id(attention_mask)][1]

    def terms(self, layer: _Layer, mask_BQK: torch.Tensor | None, dtype: torch.dtype) -> RowTerms:
        """Row terms of a layer; layers with the same patterns and the same mask share them."""
        patterns = tuple(head.pattern for head in layer.heads)
        key = (tuple(map(id, patterns)), id(mask_BQK), dtype)
        if key not in self._terms:
            plan = layer.guidance.plan
            targets = [pattern.target(self.ids_BT) for pattern in patterns]
            self._terms[key] = row_terms(targets, self.valid_BT, mask_BQK, plan.reduction, plan.target, dtype)
        return self._terms[key]


@contextmanager
def guide(model: PreTrainedModel, plan: GuidancePlan, *, measure_only: bool = False) -> Iterator[Guidance]:
    """Guide `model` by `plan` inside the block; on leaving it the model is as before.

    After `out = model(input_ids=ids, labels=ids, use_cache=False)` the block's `Guidance` gives the loss to
    add. With `measure_only` the model computes exactly what it would without, and only `per_head()` and
    `attention()` are filled, without gradients.

    Raises `UserError` for a plan that does not fit the model, a model that does not use AttentionInterface,
    an attention implementation other than SDPA, or reentrant gradient checkpointing.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            Fault(
                "model", f"{type(model).__name__} is no transformers model", "unwrap it (e.g. engine.module)"
            )
        )
    layers = attention_modules(model)
    n_heads = int(model.config.get_text_config().num_attention_heads)
    heads = plan.resolve(len(layers), n_heads)
    guidance = Guidance(plan, heads, measure_only)
    before = model.config._attn_implementation
    with ExitStack() as undo:
        for index in sorted({layer for layer, _ in heads}):
            chosen = tuple(head for layer, head in heads if layer == index)
            split = HeadSplit.choose(chosen, n_heads, getattr(layers[index], "num_key_value_groups", 1))
            guided = tuple(heads[index, head] for head in chosen)
            undo.callback(vars(layers[index]).pop, "_gaguide", None)
            layers[index]._gaguide = _Layer(guidance, index, split, guided)  # type: ignore[assignment]
        hook = model.register_forward_pre_hook(guidance._open, with_kwargs=True, prepend=True)
        undo.callback(hook.remove)
        undo.callback(model.register_forward_hook(guidance._close, always_call=True).remove)
        undo.callback(model.set_attn_implementation, before)
        model.set_attn_implementation(_NAME)
        yield guidance


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The causal self-attention module of every layer, in order; a `UserError` for a model that has none."""
    name = type(model).__name__
    if not model._can_set_attn_implementation():
        raise UserError(
            Fault("model", f"{name} does not use transformers' AttentionInterface", "use a model that does")
        )
    if model.config._attn_implementation == _NAME:
        raise UserError(
            Fault(
                "model",
                "is already guided",
                "leave the first `with guide(...)` block, or put all heads in one plan",
            )
        )
    if model.config._attn_implementation != "sdpa":
        raise UserError(
            Fault(
                "attn_implementation",
                "guidance splits heads off scaled-dot-product attention only",
                'load the model with attn_implementation="sdpa" (it uses a flash kernel where there is one)',
                model.config._attn_implementation,
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
    found = {
        int(module.__dict__["layer_idx"]): module
        for module in model.modules()
        if isinstance(module.__dict__.get("layer_idx"), int)
        and getattr(module, "is_causal", False)
        and hasattr(module, "config")
    }
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    if sorted(found) != list(range(n_layers)):
        raise UserError(
            Fault(
                "model",
                f"{name} has {n_layers} layers, but causal attention modules were found for {sorted(found)}",
                "use a decoder with one causal self-attention module a layer",
            )
        )
    return [found[index] for index in range(n_layers)]


def _checkpoints_reentrantly(model: nn.Module) -> bool:
    for module in model.modules():
        function: Callable[..., Any] | None = getattr(module, "_gradient_checkpointing_func", None)
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
) -> tuple[torch.Tensor, None]:
    """The attention function registered as "gaguide": SDPA, except for the guided heads of guided layers."""
    layer: _Layer | None = getattr(module, "_gaguide", None)
    inputs = layer.guidance._inputs if layer is not None else None
    if layer is None or inputs is None:
        return sdpa_attention_forward(
            module, q_BHTD, k_BGTD, v_BGTD, attention_mask, dropout, scaling, **kwargs
        )
    _refuse(q_BHTD, k_BGTD, kwargs)
    mask_BQK = inputs.visible(attention_mask)
    terms = inputs.terms(layer, mask_BQK, guidance_dtype(q_BHTD.dtype))
    scale = q_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    if layer.guidance.measure_only:
        q, k = layer.split.measured(q_BHTD, k_BGTD)
        layer.guidance._record(layer, *measure_attention(q, k, terms, mask_BQK, scale), terms)
        return sdpa_attention_forward(
            module, q_BHTD, k_BGTD, v_BGTD, attention_mask, dropout, scaling, **kwargs
        )
    out_BTHD = _guided_layer(
        layer, terms, mask_BQK, (q_BHTD, k_BGTD, v_BGTD), attention_mask, dropout, scale, kwargs
    )
    return out_BTHD, None


def _guided_layer(
    layer: _Layer,
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None,
    dropout: float,
    scale: float,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Output [B, T, H, D]: guided heads here, with mask_BQK; the rest by SDPA, with attention_mask."""
    split = layer.split
    (q, k, v), (rest_q, rest_k, rest_v) = split.divide(*qkv)
    guided_BhTD, loss_h, mass_h = guided_attention(q, k, v, terms, mask_BQK, scale, dropout)
    layer.guidance._record(layer, loss_h, mass_h, terms)
    if not split.rest:
        return guided_BhTD.transpose(1, 2).contiguous()
    rest_BTHD, _ = sdpa_attention_forward(
        split.as_module,  # type: ignore[arg-type]
        rest_q,
        rest_k,
        rest_v,
        attention_mask,
        dropout,
        scale,
        **kwargs,
    )
    return split.join(guided_BhTD.transpose(1, 2), rest_BTHD)


def _refuse(q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, kwargs: dict[str, Any]) -> None:
    present = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if present:
        raise UserError(
            Fault(
                "model",
                f"its attention uses {', '.join(present)}, which guidance does not cover",
                "guide another model",
            )
        )
    if q_BHTD.shape[2] != k_BGTD.shape[2]:
        raise ValueError(
            "guidance needs whole sequences: call the model with use_cache=False, not with cached keys"
        )


if Version(torch.__version__) < Version("2.13"):
    # torch 2.11's compiler gave wrong gradients here; 2.13 is the oldest seen to give right ones. Left out of
    # the graph the guided layers run as written.
    _guided_layer = torch.compiler.disable(_guided_layer)

AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
