"""One forward pass through guided layers, by one of three methods.

    joint     guided heads leave the model's attention: their output and loss come from one softmax
    tap       the model's own attention computes all heads; their loss is that of tapped queries and keys
    measure   the same without gradients

A tapped pass computes the losses of all layers in one operation, so that what they cost the host does not
grow with the number of layers. It goes layer by layer where one operation would need more memory: in row
blocks, which have a block of H for every head, and where a layer's activations are not kept for backward.

Shapes: B batch, H heads, G key/value heads, h guided heads of a layer or of several, T positions, D head
width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from gaguide.guidance import backend
from gaguide.guidance.kernel import Numbers, guidance_dtype
from gaguide.guidance.masks import Visibility, read_mask
from gaguide.guidance.patterns import Pattern, target_under
from gaguide.guidance.plan import GuidancePlan
from gaguide.guidance.targets import RowTerms, row_terms
from gaguide.model.attention_consumer import AttentionCall, PassHandler, PassInputs
from gaguide.model.head_runs import HeadRuns
from gaguide.model.head_split import HeadSplit
from gaguide.model.tap import TappedHeads, gather_heads, is_small, tap_heads


@dataclass(frozen=True)
class GuidedLayer:
    """The guided heads of one layer."""

    split: HeadSplit
    """The guided heads and the rest."""
    runs: HeadRuns
    """The guided heads once more, as a tap takes them."""
    patterns: tuple[int, ...]
    """Index in `Setting.patterns` of each guided head's pattern, in the order of the split."""


@dataclass(frozen=True)
class Setting:
    """Settings common to all passes of a guided model."""

    plan: GuidancePlan
    patterns: tuple[Pattern, ...]
    layers: Mapping[int, GuidedLayer]
    method: Literal["joint", "tap", "measure"]


@dataclass(frozen=True)
class HeadResults:
    """Loss and attention of the guided heads of one or several layers in one pass."""

    layers: tuple[int, ...]
    """The layers, ascending."""
    loss_h: torch.Tensor
    """Loss of each guided head, before any weight."""
    mass_h: torch.Tensor
    """Attention mass of each guided head on its targets, detached."""
    queries_h: torch.Tensor
    """Number of queries of each head that can see a target."""
    is_training: bool
    """Whether the heads were guided, in training mode, in a pass that autograd records."""
    lost_gradient: bool
    """Whether autograd recorded the pass but not these layers, so that the loss has no gradient."""


Results = dict[tuple[int, ...], HeadResults]
"""Layers → results."""
_Waiting = tuple[AttentionCall, TappedHeads | None]
"""A layer's call, and its tapped heads, or None where they are gathered from the call."""


class GuidedPass(PassHandler):
    """A pass's token ids, which of them are padding, and the row terms derived from them."""

    def __init__(self, inputs: PassInputs, setting: Setting, results: Results) -> None:
        assert inputs.ids_BT is not None
        self.ids_BT = inputs.ids_BT
        mask = inputs.attention_mask
        self.is_padded = isinstance(mask, torch.Tensor) and mask.ndim == 2
        self.valid_BT = mask.bool() if self.is_padded else torch.ones_like(inputs.ids_BT, dtype=torch.bool)
        self.setting, self.layers = setting, setting.layers
        self.is_checkpointed = inputs.is_checkpointed
        self.results: Results | None = results
        self.is_recorded = torch.is_grad_enabled()
        self._terms: list[tuple[tuple[int, ...], torch.Tensor | None, RowTerms]] = []
        self._masks: list[tuple[torch.Tensor, Visibility]] = []
        self._causal = Visibility(None)
        self._tapped: dict[int, _Waiting] = {}
        self._missing = set(self.layers)

    def observe(self, call: AttentionCall) -> None:
        """Measure the guided heads, where the pass is only measured."""
        if self.setting.method != "measure":
            return
        with torch.no_grad():
            self._compute([(call, self._tap_heads(call))])

    def tap(self, call: AttentionCall) -> AttentionCall:
        """Tap the guided heads."""
        if self.setting.method != "tap":
            return call
        self._missing.discard(call.layer)
        waits = self._waits(call)
        gathers = waits and is_small(call.q_BHTD) and not torch.compiler.is_compiling()
        tapped = None if gathers else self._tap_heads(call)
        if waits:
            self._tapped[call.layer] = (call, tapped)
            self._compute_tapped()
        else:
            self._compute([(call, tapped)])
        self._forget()
        if tapped is None or tapped.q_BHTD is call.q_BHTD:
            return call
        return replace(call, q_BHTD=tapped.q_BHTD, k_BGTD=tapped.k_BGTD)

    def split(self, layer: int) -> HeadSplit | None:
        """The guided heads, where their output is computed with the loss."""
        return self.layers[layer].split if self.setting.method == "joint" else None

    def produce(
        self, call: AttentionCall, q_BhTD: torch.Tensor, k_BhTD: torch.Tensor, v_BhTD: torch.Tensor
    ) -> torch.Tensor:
        """Output of the guided heads; their losses are recorded."""
        visible = self._visible(call)
        mask_BQK = visible.mask_BQK
        terms = self._row_terms(call, self.layers[call.layer].patterns, mask_BQK)
        numbers = self._numbers(call, terms, visible, call.dropout)
        qkv_BhTD = q_BhTD, k_BhTD, v_BhTD
        out_BhTD, loss_h, mass_h = backend.guided_attention(qkv_BhTD, terms, mask_BQK, numbers)
        self._record([call], loss_h, mass_h, terms)
        self._missing.discard(call.layer)
        self._forget()
        return visible.fill_blind_rows(out_BhTD, q_BhTD, k_BhTD, v_BhTD, call.scale, call.dropout)

    def finish(self) -> None:
        """Recomputed layers record nothing, and the losses are left to the `Guidance`."""
        self._compute_tapped()  # if the last layer did not wait
        self.results = None
        self._tapped.clear()

    def _tap_heads(self, call: AttentionCall) -> TappedHeads:
        return tap_heads(self.layers[call.layer].runs, call.q_BHTD, call.k_BGTD)

    def _waits(self, call: AttentionCall) -> bool:
        """Whether the layer's loss is computed with that of the others, after the last of them."""
        if not torch.is_grad_enabled():
            return False
        if torch.compiler.is_compiling():
            kept = not self.is_checkpointed
        else:  # no hooks on saved tensors, as in a checkpointed layer and in its recomputation
            top: Any = torch._C._autograd._top_saved_tensors_default_hooks
            kept = top(False) is None
        is_fused = backend.is_fused((call.q_BHTD, call.k_BGTD), self.setting.plan.loss)
        return kept and is_fused and self._visible(call).is_causal

    def _compute_tapped(self) -> None:
        """The losses of the layers that waited, if no layer is missing."""
        if self._missing:
            return
        # Neighbours that differ only in queries and keys are combined, so that results stay ordered.
        groups: list[list[_Waiting]] = []
        last: _Waiting | None = None
        for layer in sorted(self.layers):
            waiting = self._tapped.get(layer)
            if waiting is not None:
                if last is None or not _go_together(waiting, last):
                    groups.append([])
                groups[-1].append(waiting)
            last = waiting
        self._tapped.clear()
        for layers in groups:
            self._compute(layers)

    def _forget(self) -> None:
        """After the last layer of a compiled pass: what is held here would be an output of the graph, and
        backward would add a gradient of zeros to each of them."""
        if torch.compiler.is_compiling() and not self._missing:
            self._terms.clear()
            self._masks.clear()

    def _compute(self, layers: Sequence[_Waiting]) -> None:
        """Losses of layers, in one operation."""
        call, visible = layers[0][0], self._visible(layers[0][0])
        patterns = tuple(slot for call, _ in layers for slot in self.layers[call.layer].patterns)
        terms = self._row_terms(call, patterns, visible.mask_BQK)
        q_BhTD, k_BhTD = self._guided_heads(layers)
        numbers = self._numbers(call, terms, visible)
        loss_h, mass_h = backend.guided_losses((q_BhTD, k_BhTD), terms, visible.mask_BQK, numbers)
        self._record([call for call, _ in layers], loss_h, mass_h, terms)

    def _guided_heads(self, layers: Sequence[_Waiting]) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys [B, h, T, D] of the layers' guided heads: all tapped, or none."""
        tapped = [heads for _, heads in layers if heads is not None]
        if tapped:
            return (
                _joined([piece for heads in tapped for piece in heads.queries]),
                _joined([piece for heads in tapped for piece in heads.keys]),
            )
        runs, calls = [self.layers[call.layer].runs for call, _ in layers], [call for call, _ in layers]
        return (
            gather_heads([one.queries for one in runs], [call.q_BHTD for call in calls]),
            gather_heads([one.keys for one in runs], [call.k_BGTD for call in calls]),
        )

    def _record(
        self, calls: Sequence[AttentionCall], loss_h: torch.Tensor, mass_h: torch.Tensor, terms: RowTerms
    ) -> None:
        if self.results is None:
            return
        recorded = self.is_recorded and self.setting.method != "measure"
        layers = tuple(call.layer for call in calls)
        self.results[layers] = HeadResults(
            layers,
            loss_h,
            mass_h.detach(),
            terms.queries_h,
            recorded and all(call.module.training for call in calls),
            recorded and not torch.is_grad_enabled(),
        )

    def _numbers(
        self, call: AttentionCall, terms: RowTerms, visible: Visibility, dropout: float = 0.0
    ) -> Numbers:
        return Numbers(terms.offsets, self.setting.plan.loss, call.scale, visible.is_causal, dropout)

    def _visible(self, call: AttentionCall) -> Visibility:
        """Visibility by the layer's mask; layers share the model's mask, which is read once."""
        mask, T = call.mask, call.q_BHTD.shape[2]
        if mask is None:
            return self._causal
        # Compared by identity, which the compiler can follow, unlike `id`.
        for seen, visible in self._masks:
            if seen is mask:
                return visible
        self._masks.append((mask, read_mask(mask, T)))
        return self._masks[-1][1]

    def _row_terms(
        self, call: AttentionCall, patterns: tuple[int, ...], mask_BQK: torch.Tensor | None
    ) -> RowTerms:
        """Row terms of a head for each pattern, for layers like this; those with the same mask share them."""
        dtype = guidance_dtype(call.q_BHTD.dtype)
        for seen, mask, terms in self._terms:
            if seen == patterns and mask is mask_BQK and terms.columns_BhT.dtype == dtype:
                return terms
        distinct = tuple(dict.fromkeys(patterns))
        if distinct != patterns:
            slots = [distinct.index(pattern) for pattern in patterns]
            terms = self._row_terms(call, distinct, mask_BQK).take(slots)
        else:
            chosen = [self.setting.patterns[index] for index in patterns]
            targets = [target_under(pattern, self.ids_BT, mask_BQK) for pattern in chosen]
            plan = self.setting.plan
            given = self.valid_BT, mask_BQK, plan.reduction, plan.target, dtype, plan.loss, plan.threshold
            terms = row_terms(targets, *given, is_padded=self.is_padded)
        self._terms.append((patterns, mask_BQK, terms))
        return terms


def _go_together(one: _Waiting, other: _Waiting) -> bool:
    # Where a model is compiled in parts, some layers are tapped and others gathered.
    (call, tapped), (near, near_tapped) = one, other
    same_way = (tapped is None) == (near_tapped is None)
    return same_way and call.mask is near.mask and _kind(call) == _kind(near)


def _kind(call: AttentionCall) -> tuple[Any, ...]:
    shapes = call.q_BHTD.shape, call.k_BGTD.shape
    return call.scale, call.q_BHTD.dtype, call.k_BGTD.dtype, call.q_BHTD.device, *shapes


def _joined(pieces: list[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
