"""Logits-free cross-entropy and fused AdamW: step time and peak memory with and without.

    python benchmarks/loss.py [--layers 6] [--batch 1] [--length 1024] [--repeats 5]

Whole training steps of a GPT-2 of gpt2's width, alternating in one process; peak memory in a child each:
  plain     transformers' loss over full logits, torch's default AdamW (tensor by tensor, in Python)
  fused     the same with fused AdamW, as gaguide does
  chunked   fused AdamW, and torch.nn.functional.linear_cross_entropy on the hidden states in chunks
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from gaguide.train.device import peak_resident

NAMES = ("plain", "fused", "chunked")


def contender(name: str, layers: int, batch: int, length: int) -> Callable[[], float]:
    """A function that runs one training step and returns the loss."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_positions=length, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    model = GPT2LMHeadModel(config).train()
    model.loss_type = "ForCausalLM"
    model.set_attn_implementation("sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=name != "plain")
    ids_BT = torch.randint(0, 50257, (batch, length), generator=torch.Generator().manual_seed(1))

    def step() -> float:
        if name == "chunked":
            hidden_BTD = model.transformer(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
            loss = torch.nn.functional.linear_cross_entropy(
                hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
                model.lm_head.weight,
                ids_BT[:, 1:].reshape(-1),
                options=torch.nn.LinearCrossEntropyOptions(),
            )
        else:
            loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def peak_memory(name: str, shape: tuple[int, int, int]) -> int:
    """Peak bytes of a child that runs two steps, above what it held before."""
    child = [sys.executable, __file__, "child", name, *map(str, shape)]
    return int(json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout))


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        before = psutil.Process().memory_info().rss
        step = contender(sys.argv[2], *map(int, sys.argv[3:]))
        step()
        step()
        print(peak_resident() - before)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    shape = (arguments.layers, arguments.batch, arguments.length)
    steps = {name: contender(name, *shape) for name in NAMES}
    losses = {name: step() for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(arguments.repeats):
        for name in NAMES:
            began = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["plain"])
    memory = {name: peak_memory(name, shape) for name in NAMES}
    table = Table("contender", "first loss", "median step", "ratio", "peak memory", "ratio", title=str(shape))
    for name in NAMES:
        median = statistics.median(seconds[name])
        table.add_row(
            name,
            f"{losses[name]:.6f}",
            f"{median:.3f} s",
            f"{median / base:.3f}",
            f"{memory[name] / 2**20:.0f} MiB",
            f"{memory[name] / memory['plain']:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
