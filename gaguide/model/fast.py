"""The same functions in fewer operations, and in shapes that a GPU's matrix units take."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import FastGELUActivation, NewGELUActivation

_MULTIPLE = 64


def fuse_activations(model: PreTrainedModel) -> None:
    """GPT-2's GELU as one operation: transformers takes eight, and keeps four tensors for backward, not one.

    The same function to rounding (2.4e-7 in fp32); the configuration keeps its name.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | FastGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def align_head(model: PreTrainedModel) -> None:
    """Let the output layer multiply with rows of zeros up to a multiple of 64, and cut their logits off.

    Weights, their names and checkpoints stay as they are. For 16-bit products on a GPU, whose fast kernels
    need rows that are multiples of 16 bytes: 50,257 logits are none (benchmarks/RESULTS.md).
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.out_features % _MULTIPLE == 0:
        return
    missing = -head.out_features % _MULTIPLE

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        weight = functional.pad(head.weight, (0, 0, 0, missing))
        bias = None if head.bias is None else functional.pad(head.bias, (0, missing))
        return functional.linear(hidden, weight, bias)[..., : head.out_features]

    head.forward = forward  # type: ignore[assignment, method-assign]
