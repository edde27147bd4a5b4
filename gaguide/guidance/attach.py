"""`guide`: attach a plan to a model for the length of a `with` block; read its loss after each forward pass.

Guided heads compute their output and their loss from one softmax; all other heads keep running in the model's
own scaled-dot-product attention.

Shapes: B batch, H heads, G key/value heads, h guided heads of a layer, N guided heads of the model, T
positions, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from gaguide.errors import Fault, UserError
from gaguide.guidance.backend import guided_attention
from gaguide.guidance.kernel import Numbers, guidance_dtype
from gaguide.guidance.masks import Visibility, read_mask
from gaguide.guidance.operations import head_losses
from gaguide.guidance.patterns import Pattern, prepare_pattern
from gaguide.guidance.plan import GuidancePlan, GuidedHead
from gaguide.guidance.targets import RowTerms, row_terms
from gaguide.model.attention_consumer import AttentionCall, PassHandler, PassInputs
from gaguide.model.attention_hooks import attach_consumer, consumers_of
from gaguide.model.attention_support import attention_modules, reentrant_fault, unwrap_model
from gaguide.model.head_split import HeadSplit

_PerHead = dict[tuple[int, int], torch.Tensor]


@dataclass(frozen=True)
class _GuidedLayer:
    split: HeadSplit
    """The guided heads and the rest."""
    patterns: tuple[int, ...]
    """What each guided head attends to, in the order of the split: indices in `Guidance.patterns`."""


@dataclass(frozen=True)
class _LayerResult:
    loss_h: torch.Tensor
    """Loss of each guided head, before any weight."""
    mass_h: torch.Tensor
    """Attention mass of each guided head on its targets, detached."""
    queries_h: torch.Tensor
    """Queries that can see a target, by head."""
    is_training: bool
    """Whether the layer ran in training mode, in a pass that autograd records, and was guided."""
    lost_gradient: bool
    """Whether autograd recorded the pass, but not this layer."""


class Guidance:
    """Losses of the guided heads in the model's latest forward pass; made by `guide`."""

    changes_outputs = False

    def __init__(
        self,
        plan: GuidancePlan,
        heads: dict[tuple[int, int], GuidedHead],
        layers: Mapping[int, _GuidedLayer],
        patterns: tuple[Pattern, ...],
        measure_only: bool,
    ) -> None:
        self.plan = plan
        self.patterns = patterns
        """The plan's patterns, each once."""
        self.heads = MappingProxyType(heads)
        """(layer, head) → guided head, ascending."""
        self.weight = plan.weight
        """Factor of `loss()`; a schedule may set it before each step."""
        self.measure_only = measure_only
        """True leaves all heads to the model's own attention and only measures them."""
        self.enabled = True
        """False runs forward passes unguided and unmeasured, at no cost."""
        self._layers = layers
        self._results: dict[int, _LayerResult] = {}
        self._head_weights_N = torch.tensor([head.weight for head in heads.values()], dtype=torch.float64)

    def loss(self) -> torch.Tensor:
        """Eq. (4) times the plan's weight: a scalar in the guidance dtype with gradients to q and k.

        A constant zero where the pass was only measured. Raises `UserError` where the loss would carry no
        gradient although it should: under reentrant checkpointing, or with frozen parameters, in training.
        """
        results = self._latest()
        _check_gradient(results)
        losses_N = torch.cat([result.loss_h for result in results])
        # Kept on the model's device; the first copy of a few numbers need not be waited for.
        self._head_weights_N = self._head_weights_N.to(losses_N, non_blocking=True)
        total = (losses_N * self._head_weights_N).sum()
        if self.measure_only:
            return torch.zeros_like(total)
        return self.weight * total

    def per_head(self) -> _PerHead:
        """(layer, head) → that head's loss before any weight."""
        return self._by_head([result.loss_h for result in self._latest()])

    def attention(self) -> _PerHead:
        """(layer, head) → attention mass on its targets, averaged over the queries that can see one.

        In [0, 1]; NaN where no query of the batch sees a target.
        """
        return self._by_head([result.mass_h for result in self._latest()])

    def queries(self) -> _PerHead:
        """(layer, head) → number of queries that can see a target."""
        return self._by_head([result.queries_h for result in self._latest()])

    def attention_sums(self) -> torch.Tensor:
        """[2, N], fp64: by head, mass summed over queries, and the number of queries.

        Sums over batches and ranks give a mean that counts every query once.
        """
        masses_N = torch.cat([result.mass_h for result in self._latest()]).double()
        queries_N = torch.cat([result.queries_h for result in self._latest()]).double()
        return torch.stack([masses_N.nan_to_num() * queries_N, queries_N])

    def mean_attention(self) -> torch.Tensor:
        """Mean of `attention()` over the heads that saw a target; NaN where none did."""
        return torch.stack(list(self.attention().values())).nanmean()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, forward passes are only measured, whatever the block was opened for."""
        before = self.measure_only, self.enabled
        self.measure_only, self.enabled = True, True
        try:
            yield
        finally:
            self.measure_only, self.enabled = before

    def start_pass(self, inputs: PassInputs) -> PassHandler | None:
        """The handler of a forward pass that begins; its results replace those of the pass before."""
        self._results = {}
        if not self.enabled:
            return None
        if inputs.ids_BT is None:
            raise ValueError("guidance needs input_ids: patterns match token ids, and inputs_embeds has none")
        return _GuidedPass(inputs, self, self._layers, self._results)

    def _latest(self) -> list[_LayerResult]:
        """Results of the latest forward pass, in order of the layers."""
        if self._results.keys() != self._layers.keys():
            raise RuntimeError("no guided forward pass has run inside this `with guide(...)` block")
        return [self._results[layer] for layer in sorted(self._results)]

    def _by_head(self, values_h: list[torch.Tensor]) -> _PerHead:
        return dict(zip(self.heads, (value for layer in values_h for value in layer.unbind())))


class _GuidedPass(PassHandler):
    """One forward pass: its token ids, which of them are padding, and the row terms derived from them."""

    def __init__(
        self,
        inputs: PassInputs,
        guidance: Guidance,
        layers: Mapping[int, _GuidedLayer],
        results: dict[int, _LayerResult],
    ) -> None:
        assert inputs.ids_BT is not None
        self.ids_BT = inputs.ids_BT
        mask = inputs.attention_mask
        padded = isinstance(mask, torch.Tensor) and mask.ndim == 2
        self.valid_BT = mask.bool() if padded else torch.ones_like(inputs.ids_BT).bool()
        # Not the guidance itself, whose results hold the autograd graph, which holds this handler.
        self.plan, self.patterns, self.layers = guidance.plan, guidance.patterns, layers
        self.measure_only = guidance.measure_only
        self.results: dict[int, _LayerResult] | None = results
        self.is_recorded = torch.is_grad_enabled()
        self._terms: list[tuple[tuple[int, ...], torch.Tensor | None, RowTerms]] = []
        self._masks: list[tuple[torch.Tensor, Visibility]] = []
        self._causal = Visibility(None)

    def observe(self, call: AttentionCall) -> None:
        """Measure the guided heads, where the pass is only measured."""
        if not self.measure_only:
            return
        visible = self._visible(call)
        terms = self._row_terms(call, visible.mask_BQK)
        qk_BhTD = self.layers[call.layer].split.select(call.q_BHTD, call.k_BGTD)
        with torch.no_grad():
            numbers = self._numbers(call, terms, visible)
            loss_h, mass_h = head_losses(qk_BhTD, terms, visible.mask_BQK, numbers)
        self._record(call, loss_h, mass_h, terms)

    def split(self, layer: int) -> HeadSplit | None:
        """The guided heads, unless they are only measured."""
        return None if self.measure_only else self.layers[layer].split

    def produce(
        self, call: AttentionCall, q_BhTD: torch.Tensor, k_BhTD: torch.Tensor, v_BhTD: torch.Tensor
    ) -> torch.Tensor:
        """Output of the guided heads; their losses are recorded."""
        visible = self._visible(call)
        mask_BQK = visible.mask_BQK
        terms = self._row_terms(call, mask_BQK)
        numbers = self._numbers(call, terms, visible, call.dropout)
        out_BhTD, loss_h, mass_h = guided_attention((q_BhTD, k_BhTD, v_BhTD), terms, mask_BQK, numbers)
        self._record(call, loss_h, mass_h, terms)
        return visible.fill_blind_rows(out_BhTD, q_BhTD, k_BhTD, v_BhTD, call.scale, call.dropout)

    def finish(self) -> None:
        """Recomputed layers record nothing, and the losses are left to the `Guidance`."""
        self.results = None

    def _record(
        self, call: AttentionCall, loss_h: torch.Tensor, mass_h: torch.Tensor, terms: RowTerms
    ) -> None:
        if self.results is None:
            return
        recorded = self.is_recorded and not self.measure_only
        self.results[call.layer] = _LayerResult(
            loss_h,
            mass_h.detach(),
            terms.queries_h,
            recorded and call.module.training,
            recorded and not torch.is_grad_enabled(),
        )

    def _numbers(
        self, call: AttentionCall, terms: RowTerms, visible: Visibility, dropout: float = 0.0
    ) -> Numbers:
        return Numbers(terms.offsets, self.plan.loss, call.scale, visible.is_causal, dropout)

    def _visible(self, call: AttentionCall) -> Visibility:
        """What the layer's mask says; layers share the model's mask, which is read once."""
        mask, T = call.mask, call.q_BHTD.shape[2]
        if mask is None:
            return self._causal
        # Compared by identity, which the compiler can follow; `id` it cannot.
        for seen, visible in self._masks:
            if seen is mask:
                return visible
        self._masks.append((mask, read_mask(mask, T)))
        return self._masks[-1][1]

    def _row_terms(self, call: AttentionCall, mask_BQK: torch.Tensor | None) -> RowTerms:
        """Row terms of a layer; layers with the same patterns and the same mask share them."""
        dtype = guidance_dtype(call.q_BHTD.dtype)
        patterns = self.layers[call.layer].patterns
        for seen, mask, terms in self._terms:
            if seen == patterns and mask is mask_BQK and terms.columns_BhT.dtype == dtype:
                return terms
        targets = [self.patterns[index].target(self.ids_BT) for index in patterns]
        plan = self.plan
        terms = row_terms(
            targets, self.valid_BT, mask_BQK, plan.reduction, plan.target, dtype, plan.loss, plan.threshold
        )
        self._terms.append((patterns, mask_BQK, terms))
        return terms


def _check_gradient(results: list[_LayerResult]) -> None:
    if any(result.lost_gradient for result in results):
        raise UserError(reentrant_fault())
    if all(result.is_training for result in results) and not any(r.loss_h.requires_grad for r in results):
        problem = "no trained parameter influences the guided heads, so their loss has no gradient"
        remedy = "train the embeddings or a layer up to the topmost guided one, or open the block to measure"
        raise UserError(Fault("guidance", problem, f"{remedy} (measure_only=True)"))


def _prepare_patterns(plan: GuidancePlan, device: torch.device) -> tuple[Pattern, ...]:
    """The plan's patterns, each once, with their tables on the device before a compiler traces them."""
    patterns = tuple({id(a.pattern): a.pattern for a in plan.assignments}.values())
    for pattern in patterns:
        prepare_pattern(pattern, device)
    return patterns


@contextmanager
def guide(model: nn.Module, plan: GuidancePlan, *, measure_only: bool = False) -> Iterator[Guidance]:
    """Guide `model` by `plan` inside the block; on leaving it the model is as before.

    After `out = model(input_ids=ids, labels=ids, use_cache=False)` the block's `Guidance` has the loss to
    add. With `measure_only` the model computes exactly what it would without, and only `per_head()` and
    `attention()` are filled, without gradients. The block may be inside or around one that collects maps
    or measures. `model` may be wrapped (torch.compile, PEFT, DeepSpeed, DDP). In a hybrid, layers `all` and
    `last-half` mean those with attention.

    Raises `UserError` for a plan that does not fit the model, a model that does not use AttentionInterface,
    an attention implementation other than SDPA, reentrant gradient checkpointing, or a model that is guided
    already.
    """
    layers = attention_modules(model)
    model = unwrap_model(model)
    others = [consumer for consumer in consumers_of(model) if isinstance(consumer, Guidance)]
    if not measure_only and not all(other.measure_only for other in others):
        raise UserError(
            Fault(
                "model",
                "is already guided",
                "leave the first `with guide(...)` block, or put all heads in one plan",
            )
        )
    config = model.config.get_text_config()
    n_heads, n_layers = int(config.num_attention_heads), int(config.num_hidden_layers)
    heads = plan.restricted_to(layers, n_layers).resolve(n_layers, n_heads)
    patterns = _prepare_patterns(plan, model.device)
    slot_of = {id(pattern): slot for slot, pattern in enumerate(patterns)}
    guided: dict[int, _GuidedLayer] = {}
    for index in sorted({layer for layer, _ in heads}):
        chosen = tuple(head for layer, head in heads if layer == index)
        groups = getattr(layers[index], "num_key_value_groups", 1)
        split = HeadSplit.choose(chosen, n_heads, groups)
        slots = tuple(slot_of[id(heads[index, head].pattern)] for head in chosen)
        guided[index] = _GuidedLayer(split, slots)
    guidance = Guidance(plan, heads, guided, patterns, measure_only)
    with attach_consumer(model, tuple(guided), guidance):
        yield guidance
