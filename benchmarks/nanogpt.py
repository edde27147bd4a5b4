"""nanoGPT's model and loop, as the opponent of a training on one process.

The model is GPT-2 as nanoGPT writes it: one projection for q, k and v, torch's SDPA with `is_causal=True`
and no mask, tied embeddings, loss over all positions. Unlike nanoGPT it predicts token t + 1 from the T
tokens of a block with T - 1 losses, as gaguide and transformers do, so that all contenders do the same
work.

Shapes: B batch, H heads, T positions, D head width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    width: int
    vocabulary: int
    positions: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape of a transformers GPT2Config."""
        return cls(config.n_layer, config.n_head, config.n_embd, config.vocab_size, config.n_positions)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.ln_1, self.ln_2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.c_attn = nn.Linear(shape.width, 3 * shape.width)
        self.c_proj = nn.Linear(shape.width, shape.width)
        self.c_fc = nn.Linear(shape.width, 4 * shape.width)
        self.c_out = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        B, T, E = x_BTE.shape
        parts = self.c_attn(self.ln_1(x_BTE)).split(E, dim=2)
        q_BHTD, k_BHTD, v_BHTD = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in parts)
        out_BHTD = functional.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)
        x_BTE = x_BTE + self.c_proj(out_BHTD.transpose(1, 2).contiguous().view(B, T, E))
        return x_BTE + self.c_out(functional.gelu(self.c_fc(self.ln_2(x_BTE)), approximate="tanh"))


class NanoGPT(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.wte = nn.Embedding(shape.vocabulary, shape.width)
        self.wpe = nn.Embedding(shape.positions, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.wte.weight = self.head.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the next tokens."""
        positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTE = self.wte(ids_BT) + self.wpe(positions_T)
        for block in self.blocks:
            x_BTE = block(x_BTE)
        logits_BTV = self.head(self.ln_f(x_BTE))[:, :-1]
        return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten())


def steps(
    shape: Shape, batches: Iterator[torch.Tensor], rate: float, accumulation: int, compiled: bool, device: str
) -> Iterator[None]:
    """nanoGPT's loop; each item is a step. `batches` gives ids [B, T] int64 on the host.

    On a GPU: bf16 autocast, a vocabulary padded to a multiple of 64, TF32, the next batch copied while the
    backward runs.
    """
    on_gpu = device == "cuda"
    if on_gpu:
        shape = Shape(**(vars(shape) | {"vocabulary": -(-shape.vocabulary // 64) * 64}))
        torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(0)
    model: Any = NanoGPT(shape).to(device)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    run = torch.compile(model) if compiled else model
    half = on_gpu and torch.cuda.is_bf16_supported()

    def following() -> torch.Tensor:
        ids_BT = next(batches)
        return ids_BT.pin_memory().to(device, non_blocking=True) if on_gpu else ids_BT

    ids_BT = following()
    while True:
        for _ in range(accumulation):
            with torch.autocast(device, torch.bfloat16, enabled=half):
                loss = run(ids_BT) / accumulation
            ids_BT = following()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield
