"""Attention of isolated documents in blocks: by a mask, by document, and without isolation.

    python benchmarks/packing.py [--length 1024] [--document 200] [--repeats 15] [--device cpu]

One layer of the shape of gpt2, forward and backward, micro batch of 4. Contenders alternate; medians and
their ratios to the mask are printed. On a GPU torch's variable-length flash attention takes part.

Shapes: B blocks, H heads, T positions, D head width.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gaguide.train.inputs import document_mask

_B, _H, _D = 4, 12, 64
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def document_lengths(length: int, mean: float, seed: int) -> list[list[int]]:
    """Lengths of the documents of each block: log-normal, cut at the blocks' ends as shards are."""
    random = np.random.default_rng(seed)
    blocks = []
    for _ in range(_B):
        lengths: list[int] = []
        while sum(lengths) < length:
            drawn = int(random.lognormal(np.log(mean) - 0.5, 1)) + 1
            lengths.append(min(drawn, length - sum(lengths)))
        blocks.append(lengths)
    return blocks


def by_document(
    lengths: list[list[int]], q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor
) -> torch.Tensor:
    """Causal attention of each document by itself."""
    rows = []
    for row, own in enumerate(lengths):
        parts = (each[row : row + 1].split(own, 2) for each in (q_BHTD, k_BHTD, v_BHTD))
        rows.append(torch.cat([sdpa(*part, is_causal=True) for part in zip(*parts, strict=True)], 2))
    return torch.cat(rows)


def variable_length(
    lengths: list[list[int]], q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor
) -> torch.Tensor:
    """torch's flash attention over all documents at once; needs a GPU and 16 bits."""
    from torch.nn.attention.varlen import varlen_attn

    flat = [length for own in lengths for length in own]
    ends = torch.tensor([0, *np.cumsum(flat)], dtype=torch.int32, device=q_BHTD.device)
    q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (q_BHTD, k_BHTD, v_BHTD))
    out = varlen_attn(q, k, v, ends, ends, max(flat), max(flat), window_size=(-1, 0))
    return out.view(_B, -1, _H, _D).transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--document", type=float, default=200)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    lengths = document_lengths(arguments.length, arguments.document, seed=0)
    document_BT = torch.tensor([np.repeat(range(len(own)), own).tolist() for own in lengths])
    mask = document_mask(document_BT).to(arguments.device)
    contenders: dict[str, Attention] = {
        "a mask of T × T": partial(sdpa, attn_mask=mask),
        "each document by itself": partial(by_document, lengths),
        "no isolation": partial(sdpa, is_causal=True),
    }
    if on_gpu:
        contenders["variable-length flash attention"] = partial(variable_length, lengths)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    generator = torch.Generator().manual_seed(0)
    shape = (_B, _H, arguments.length, _D)
    inputs = [torch.randn(shape, generator=generator).to(arguments.device, dtype) for _ in range(3)]
    outputs = {name: run(attention, inputs)[0] for name, attention in contenders.items()}
    for name in contenders.keys() - {"no isolation"}:
        torch.testing.assert_close(
            outputs[name], outputs["a mask of T × T"], rtol=2e-2, atol=2e-2 if on_gpu else 1e-5
        )
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.repeats):
        for name, attention in contenders.items():
            times[name].append(run(attention, inputs)[1])
    number = sum(map(len, lengths))
    table = Table("attention", "median ms", "least ms", "ratio to the mask")
    first = statistics.median(times["a mask of T × T"])
    for name, measured in times.items():
        median = statistics.median(measured)
        table.add_row(name, f"{median * 1e3:.2f}", f"{min(measured) * 1e3:.2f}", f"{median / first:.2f}")
    console = Console(width=100)
    console.print(
        f"{_B} blocks of {arguments.length} tokens, {number} documents, {dtype}, forward and backward"
    )
    console.print(table)
    console.print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def run(attention: Attention, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """The output, and the seconds of forward and backward."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    begun = _now(leaves[0].device)
    out = attention(*leaves)
    out.sum().backward()
    return out.detach(), _now(leaves[0].device) - begun


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
