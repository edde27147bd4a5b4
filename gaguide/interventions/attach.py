"""`intervene`: change the outputs of chosen heads in every forward pass of a `with` block.

All interventions act on a layer's attention output before its output projection, one head's part at a time,
in the order in which they are given. The attention itself stays the model's: layers without a chosen head,
and the other heads, run in the model's backend as before, and guidance or maps inside or around the block see
the attention that the model computes from its own queries and keys (of later layers: after the change).

Shapes: B batch, H heads, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.model.attention_consumer import SOFTMAX_ARGUMENTS, AttentionCall, PassHandler, PassInputs
from gaguide.model.attention_hooks import attach_consumer
from gaguide.model.attention_support import causal_attention_modules, unwrap_model

Head = tuple[int, int]
"""(layer, head), both counted from 0."""


class Intervention(Protocol):
    """A change of the outputs of some heads.

    One that does not depend on how attention came about may set `understands = SOFTMAX_ARGUMENTS`
    (`gaguide.model.attention_consumer`), and is then accepted where scores are capped or there are sinks.
    """

    @property
    def heads(self) -> Sequence[Head]:
        """The heads that it changes."""
        ...

    def change(
        self, call: AttentionCall, inputs: PassInputs, heads: Sequence[int], out_BTHD: torch.Tensor
    ) -> torch.Tensor:
        """The new output [B, T, h, D] of `heads`, those of the call's layer; `out_BTHD` has all heads'."""
        ...


@contextmanager
def intervene(model: nn.Module, *interventions: Intervention) -> Iterator[None]:
    """Apply `interventions` in every forward pass of `model` inside the block; then the model is as before.

    Blocks may be nested, and combined with `guide`, `collecting` and measuring in any order. Raises
    `UserError` for a model without AttentionInterface and for heads that it does not have.
    """
    modules = causal_attention_modules(model)
    n_heads = int(unwrap_model(model).config.get_text_config().num_attention_heads)
    with FaultCollector() as faults:
        for layer, head in dict.fromkeys(key for one in interventions for key in one.heads):
            if layer not in modules:
                remedy = f"choose from {', '.join(map(str, modules))}"
                faults.add(Fault("layer", "has no causal self-attention in this model", remedy, layer))
            if not 0 <= head < n_heads:
                remedy = f"choose from 0 to {n_heads - 1}"
                faults.add(Fault("head", f"the model has {n_heads} heads in each layer", remedy, head))
        if not any(one.heads for one in interventions):
            faults.add(Fault("heads", "no intervention names a head", "name at least one (layer, head)"))
    consumer = _Interventions(interventions)
    layers = sorted({layer for one in interventions for layer, _ in one.heads})
    with attach_consumer(model, layers, consumer):
        yield


class _Interventions:
    changes_outputs = True

    def __init__(self, interventions: Sequence[Intervention]) -> None:
        self.by_layer: dict[int, list[tuple[Intervention, tuple[int, ...]]]] = {}
        for one in interventions:
            for layer in sorted({layer for layer, _ in one.heads}):
                heads = tuple(sorted({head for at, head in one.heads if at == layer}))
                self.by_layer.setdefault(layer, []).append((one, heads))
        known: list[frozenset[str]] = [getattr(one, "understands", frozenset()) for one in interventions]
        self.understands = SOFTMAX_ARGUMENTS.intersection(*known)

    def __str__(self) -> str:
        """Kind of each intervention and its heads."""
        kinds = dict.fromkeys(one for layer in self.by_layer.values() for one, _ in layer)
        return ", ".join(f"{type(one).__name__} {list(one.heads)}" for one in kinds)

    def start_pass(self, inputs: PassInputs) -> PassHandler:
        return _InterventionPass(inputs, self)


class _InterventionPass(PassHandler):
    def __init__(self, inputs: PassInputs, interventions: _Interventions) -> None:
        self.inputs, self.interventions = inputs, interventions
        self.understands = interventions.understands

    def transform_output(self, call: AttentionCall, out_BTHD: torch.Tensor) -> torch.Tensor:
        for one, heads in self.interventions.by_layer[call.layer]:
            changed_BThD = one.change(call, self.inputs, heads, out_BTHD)
            out_BTHD = replace_heads(out_BTHD, heads, changed_BThD)
        return out_BTHD


def replace_heads(out_BTHD: torch.Tensor, heads: Sequence[int], new_BThD: torch.Tensor) -> torch.Tensor:
    """A copy of the output with the parts of `heads` replaced; differentiable in both."""
    index = torch.tensor(heads, device=out_BTHD.device)
    return out_BTHD.index_copy(2, index, new_BThD.to(out_BTHD.dtype).expand(*out_BTHD.shape[:2], -1, -1))


def refuse(problem: str, remedy: str) -> UserError:
    """The error of an intervention that does not fit the pass."""
    return UserError.of("intervention", problem, remedy)
