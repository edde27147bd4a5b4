"""Faster equivalents of model parts: fewer operations, and shapes that suit a GPU's matrix units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import FastGELUActivation, NewGELUActivation

_MULTIPLE = 64


def fuse_activations(model: PreTrainedModel) -> None:
    """Replace GPT-2's GELU by torch's, in place; the configuration keeps its name.

    transformers computes it in eight operations that keep five tensors for backward; torch's is one operation
    that keeps two. Results agree to rounding (2.4e-7 in fp32).
    """
    for module, name, _ in _slow_activations(model):
        setattr(module, name, nn.GELU(approximate="tanh"))


@contextmanager
def fused_activations(model: PreTrainedModel) -> Iterator[None]:
    """Inside, as after `fuse_activations`; afterwards the model has its own modules again."""
    slow = _slow_activations(model)
    fuse_activations(model)
    try:
        yield
    finally:
        for module, name, child in slow:
            setattr(module, name, child)


def _slow_activations(model: PreTrainedModel) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, module) of each GELU that `fuse_activations` replaces."""
    return [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, NewGELUActivation | FastGELUActivation)
    ]


class _AlignedLinear(nn.Linear):
    """Pads its outputs to a multiple of 64 for the multiplication, and removes the padding afterwards."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        missing = -self.out_features % _MULTIPLE
        weight = functional.pad(self.weight, (0, 0, 0, missing))
        bias = None if self.bias is None else functional.pad(self.bias, (0, missing))
        return functional.linear(input, weight, bias)[..., : self.out_features]


def align_head(model: PreTrainedModel) -> None:
    """Pad the output layer's computation to a multiple of 64 logits, in place.

    Weights, their names and checkpoints do not change. A GPU's fast kernels for 16-bit products need rows of
    a multiple of 16 bytes, which 50,257 logits are not (benchmarks/RESULTS.md).
    """
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.out_features % _MULTIPLE:
        head.__class__ = (
            _AlignedLinear  # in place, since weights are tied to it and hooks may be registered on it
        )


def adapt_to(model: PreTrainedModel, device: torch.device, precision: str) -> None:
    """Adapt a model in place to the device and precision it is trained in."""
    if device.type == "cuda" and precision != "fp32":
        align_head(model)
