"""Heads' outputs, recorded from the model's forward passes: as they are, or their mean over a corpus.

Shapes: B batch, H heads, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gaguide.interventions.attach import Head, refuse
from gaguide.model.attention_consumer import AttentionCall, PassHandler, PassInputs
from gaguide.model.attention_hooks import attach_consumer
from gaguide.model.attention_support import causal_attention_modules, unwrap_model


@dataclass(eq=False)
class HeadOutputs:
    """Attention outputs of the latest forward pass, by layer; filled inside `record_outputs`."""

    keep_graph: bool = False
    """Whether the tensors keep their autograd graph, to differentiate with respect to them."""
    by_layer: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer → [B, T, H, D], before the output projection."""

    changes_outputs = False

    def head(self, layer: int, head: int) -> torch.Tensor:
        """One head's output [B, T, D]."""
        return self.by_layer[layer][:, :, head]

    def of(self, heads: Iterable[Head]) -> dict[Head, torch.Tensor]:
        """(layer, head) → [B, T, D]."""
        return {(layer, head): self.head(layer, head) for layer, head in heads}

    def start_pass(self, inputs: PassInputs) -> PassHandler:
        """The handler that fills `by_layer`."""
        self.by_layer = {}
        return _RecordingPass(self)


class _RecordingPass(PassHandler):
    def __init__(self, outputs: HeadOutputs) -> None:
        self.outputs: HeadOutputs | None = outputs

    def transform_output(self, call: AttentionCall, out_BTHD: torch.Tensor) -> torch.Tensor:
        if self.outputs is not None:
            self.outputs.by_layer[call.layer] = out_BTHD if self.outputs.keep_graph else out_BTHD.detach()
        return out_BTHD

    def finish(self) -> None:
        self.outputs = None


@contextmanager
def record_outputs(
    model: nn.Module, layers: Sequence[int] | None = None, keep_graph: bool = False
) -> Iterator[HeadOutputs]:
    """Inside, each forward pass of `model` fills the outputs of `layers` (None: all with attention).

    Inside a block of `intervene` they are the changed ones; around it they are those before the change.
    """
    found = causal_attention_modules(model)
    if missing := sorted(set(layers or ()) - found.keys()):
        raise refuse(f"layers {missing} have no causal self-attention", f"choose from {sorted(found)}")
    outputs = HeadOutputs(keep_graph)
    with attach_consumer(model, sorted(found) if layers is None else layers, outputs):
        yield outputs


@torch.no_grad()
def mean_outputs(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], layers: Sequence[int] | None = None
) -> dict[Head, torch.Tensor]:
    """(layer, head) → mean output [D] over all tokens of `batches`, the model's keyword arguments; fp64 on
    the CPU.

    Tokens that a two-dimensional attention_mask marks as padding are left out.
    """
    sums: dict[int, torch.Tensor] = {}
    tokens = 0
    inner = unwrap_model(model)
    with record_outputs(model, layers) as outputs:
        for inputs in batches:
            inner.base_model(**inputs, use_cache=False)
            mask = inputs.get("attention_mask")
            kept_BT = torch.ones_like(inputs["input_ids"]).bool()
            if isinstance(mask, torch.Tensor) and mask.ndim == 2:
                kept_BT = mask.bool()
            tokens += int(kept_BT.sum())
            for layer, out_BTHD in outputs.by_layer.items():
                sum_HD = out_BTHD[kept_BT].double().sum(0).cpu()
                sums[layer] = sums[layer] + sum_HD if layer in sums else sum_HD
    if not tokens:
        raise refuse("there is no text to take the mean over", "give at least one batch")
    return {
        (layer, head): mean_D / tokens for layer, sum_HD in sums.items() for head, mean_D in enumerate(sum_HD)
    }
