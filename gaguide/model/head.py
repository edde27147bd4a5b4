"""The output layer on a GPU: a vocabulary of 50,257 keeps the matrix units from their fast path."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

_MULTIPLE = 64


def align_head(model: PreTrainedModel) -> None:
    """Let the output layer multiply with rows of zeros up to a multiple of 64, and cut their logits off.

    Weights, their names and checkpoints stay as they are. For 16-bit products on a GPU, whose kernels need
    rows of 16 bytes: on an H100 the three products of GPT-2's output layer are several times faster.
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
