"""The same functions in fewer operations, and in shapes that a GPU's matrix units take."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import FastGELUActivation, NewGELUActivation

_MULTIPLE = 64


def fuse_activations(model: PreTrainedModel) -> None:
    """GPT-2's GELU as one operation: transformers takes eight, and keeps five tensors of that width, not two.

    The same function to rounding (2.4e-7 in fp32); the configuration keeps its name.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | FastGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


class _AlignedLinear(nn.Linear):
    """Multiplies with rows of zeros up to a multiple of 64, and cuts their outputs off."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        missing = -self.out_features % _MULTIPLE
        weight = functional.pad(self.weight, (0, 0, 0, missing))
        bias = None if self.bias is None else functional.pad(self.bias, (0, missing))
        return functional.linear(input, weight, bias)[..., : self.out_features]


def align_head(model: PreTrainedModel) -> None:
    """Compute the output layer in rows whose length is a multiple of 64.

    Weights, their names and checkpoints stay as they are. For 16-bit products on a GPU, whose fast kernels
    need rows that are multiples of 16 bytes: 50,257 logits are none (benchmarks/RESULTS.md).
    """
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.out_features % _MULTIPLE:
        head.__class__ = _AlignedLinear  # in place: weights are tied to it, and hooks may hang on it


def adapt_to(model: PreTrainedModel, device: torch.device, precision: str) -> None:
    """What training and its memory probe do to a model for a device."""
    if device.type == "cuda" and precision != "fp32":
        align_head(model)
