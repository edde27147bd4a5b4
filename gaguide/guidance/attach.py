"""`guide`: attach a plan to a model for the length of a `with` block; read its loss after each forward pass.

guided_pass.py computes the guided layers.

Shapes: h guided heads of some layers, N guided heads of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import nn

from gaguide.errors import UserError
from gaguide.guidance.guided_pass import GuidedLayer, GuidedPass, HeadResults, Results, Setting
from gaguide.guidance.patterns import Pattern, prepare_pattern
from gaguide.guidance.plan import GuidancePlan, GuidedHead
from gaguide.model.attention_consumer import PassHandler, PassInputs
from gaguide.model.attention_hooks import attach_consumer, consumers_of
from gaguide.model.attention_support import attention_modules, reentrant_fault, unwrap_model
from gaguide.model.head_runs import HeadRuns
from gaguide.model.head_split import HeadSplit

Method = Literal["auto", "joint", "tap"]
"""How guided heads are computed: see `guide`."""
METHODS = get_args(Method)
_PerHead = dict[tuple[int, int], torch.Tensor]


class Guidance:
    """Losses of the guided heads in the model's latest forward pass; made by `guide`."""

    changes_outputs = False

    def __init__(
        self,
        plan: GuidancePlan,
        heads: dict[tuple[int, int], GuidedHead],
        layers: Mapping[int, GuidedLayer],
        patterns: tuple[Pattern, ...],
        measure_only: bool,
        method: Method = "auto",
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
        self.method = method
        """How the loss is computed, as in `guide`."""
        self._layers = layers
        self._results: Results = {}
        self._head_weights_N = torch.tensor([head.weight for head in heads.values()], dtype=torch.float64)

    def loss(self) -> torch.Tensor:
        """Eq. (4) times the plan's weight: a scalar in the guidance dtype with gradients to q and k.

        A constant zero where the pass was only measured. Raises `UserError` where the loss would carry no
        gradient although it should: under reentrant checkpointing, or with frozen parameters, in training.
        """
        results = self._latest()
        _check_gradient(results)
        losses_N = _joined([result.loss_h for result in results])
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

        Sums over batches and ranks give a mean that counts every query once; it is NaN where attention is.
        """
        masses_N = _joined([result.mass_h for result in self._latest()]).double()
        queries_N = _joined([result.queries_h for result in self._latest()]).double()
        return torch.stack([torch.where(queries_N > 0, masses_N * queries_N, 0), queries_N])

    def mean_attention(self) -> torch.Tensor:
        """Mean of `attention()` over the heads that saw a target; NaN where none saw one."""
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
            raise ValueError("guidance needs input_ids: patterns match token ids, which inputs_embeds lacks")
        on_gpu = inputs.ids_BT.device.type != "cpu"
        how = self.method if self.method != "auto" else "tap" if on_gpu else "joint"
        setting = Setting(self.plan, self.patterns, self._layers, "measure" if self.measure_only else how)
        # Not the guidance itself, whose results hold the autograd graph, which holds this handler.
        return GuidedPass(inputs, setting, self._results)

    def _latest(self) -> list[HeadResults]:
        """Results of the latest forward pass, in order of the layers."""
        results = [self._results[layers] for layers in sorted(self._results)]
        if [layer for result in results for layer in result.layers] != sorted(self._layers):
            raise RuntimeError("no guided forward pass has run inside this `with guide(...)` block")
        return results

    def _by_head(self, values_h: list[torch.Tensor]) -> _PerHead:
        return dict(zip(self.heads, (value for part in values_h for value in part.unbind())))


def _check_gradient(results: list[HeadResults]) -> None:
    if any(result.lost_gradient for result in results):
        raise UserError(reentrant_fault())
    if all(result.is_training for result in results) and not any(r.loss_h.requires_grad for r in results):
        problem = "no trained parameter influences the guided heads, so their loss has no gradient"
        remedy = "train the embeddings or a layer up to the topmost guided one, or open the block to measure"
        raise UserError.of("guidance", problem, f"{remedy} (measure_only=True)")


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _prepare_patterns(plan: GuidancePlan, device: torch.device) -> tuple[Pattern, ...]:
    """The plan's patterns, each once, with their tables on the device before a compiler traces them."""
    patterns = tuple({id(a.pattern): a.pattern for a in plan.assignments}.values())
    for pattern in patterns:
        prepare_pattern(pattern, device)
    return patterns


@contextmanager
def guide(
    model: nn.Module, plan: GuidancePlan, *, measure_only: bool = False, method: Method = "auto"
) -> Iterator[Guidance]:
    """Guide `model` by `plan` inside the block; on leaving it the model is as before.

    After `out = model(input_ids=ids, labels=ids, use_cache=False)` the block's `Guidance` has the loss to
    add. With `measure_only` the model computes exactly the same as without guidance, and only
    `per_head()` and `attention()` are filled, without gradients. The block may be inside or around one that
    collects maps or measures. `method` chooses how guided heads are computed: "joint", their output and loss
    from one softmax, apart from the other heads; "tap", the loss of their queries and keys in addition to the
    model's own attention of all heads, whose output, dropout included, is that of an unguided model; "auto"
    is joint on a CPU and tap elsewhere. Losses and gradients are the same within rounding. `model` may be
    wrapped (torch.compile, PEFT, DeepSpeed, DDP). In a hybrid, layers `all` and `last-half` mean those with
    attention.

    Raises `ValueError` for another method, and `UserError` for a plan that does not fit the model, a model
    that does not use AttentionInterface, an attention implementation other than SDPA, reentrant gradient
    checkpointing, or a model that is guided already.
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: must be one of {', '.join(METHODS)}")
    layers = attention_modules(model)
    model = unwrap_model(model)
    others = [consumer for consumer in consumers_of(model) if isinstance(consumer, Guidance)]
    if not measure_only and not all(other.measure_only for other in others):
        raise UserError.of(
            "model",
            "is already guided",
            "leave the first `with guide(...)` block, or put all heads in one plan",
        )
    config = model.config.get_text_config()
    n_heads, n_layers = int(config.num_attention_heads), int(config.num_hidden_layers)
    heads = plan.restricted_to(layers, n_layers).resolve(n_layers, n_heads)
    patterns = _prepare_patterns(plan, model.device)
    slot_of = {id(pattern): slot for slot, pattern in enumerate(patterns)}
    guided: dict[int, GuidedLayer] = {}
    for index in sorted({layer for layer, _ in heads}):
        chosen = tuple(head for layer, head in heads if layer == index)
        groups = getattr(layers[index], "num_key_value_groups", 1)
        split = HeadSplit.choose(chosen, n_heads, groups)
        slots = tuple(slot_of[id(heads[index, head].pattern)] for head in chosen)
        guided[index] = GuidedLayer(split, HeadRuns.of(chosen, groups), slots)
    guidance = Guidance(plan, heads, guided, patterns, measure_only, method)
    with attach_consumer(model, tuple(guided), guidance):
        yield guidance
