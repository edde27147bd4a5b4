"""The cost of guidance: step time and peak memory, compared with the unguided step and with dense maps.

    python benchmarks/guidance.py [--layers 6] [--batch 1] [--length 1024] [--repeats 7]
                                  [--device cpu] [--dtype fp32] [--contenders unguided,ours-4,…]
    python benchmarks/guidance.py memory [--lengths 512,1024,2048,4096,8192]

The contenders run a whole training step (forward, backward, fused AdamW) of a GPT-2 with gpt2's width:
  unguided   the model's own SDPA
  ours-N     N heads of every layer guided by gaguide
  dense-N    the same loss from eager attention maps (output_attentions=True), full H and P
A name that ends in -compiled runs as `train.compile: true` does, and is compared with unguided-compiled.
Contenders alternate in one process. Peak memory is that of one child process per contender (CPU: resident
set, minus that before the first step; GPU: allocated). The default on a GPU is bf16.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from gaguide.engine.compiled import CompiledForward
from gaguide.guidance import DEFAULT_WEIGHT, Assignment, GuidancePlan, TokenSet, guide
from gaguide.model import adapt_to, fuse_activations
from gaguide.model.packed import use_packed_attention

COMPILED = "-compiled"
WORDS = frozenset(range(100, 600))  # about one token in a hundred, as the contrast set in English


def model_of(layers: int, length: int, attention: str, device: str, dtype: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_positions=length, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation(attention)
    model.loss_type = "ForCausalLM"
    fuse_activations(model)  # as training does
    adapt_to(model, torch.device(device), dtype)
    return model.to(device, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]).train()


def contender(
    name: str, layers: int, batch: int, length: int, device: str, dtype: str, stack: ExitStack
) -> Callable[[], None]:
    """A function that runs one training step of the named contender."""
    base = name.removesuffix(COMPILED)
    kind, _, heads = base.partition("-")
    plan = GuidancePlan((Assignment(TokenSet("words", WORDS), tuple(range(int(heads or 1)))),))
    model = model_of(layers, length, "eager" if kind == "dense" else "sdpa", device, dtype)
    packed = use_packed_attention(model)
    compiled = CompiledForward(model, True, packed) if name != base else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids_BT = torch.randint(0, 50257, (batch, length), generator=torch.Generator().manual_seed(1)).to(device)
    guidance = stack.enter_context(guide(model, plan)) if kind == "ours" else None

    def step() -> None:
        if compiled is not None:
            compiled.prepare({"input_ids": ids_BT})
        out = model(input_ids=ids_BT, labels=ids_BT, use_cache=False, output_attentions=kind == "dense")
        loss = out.loss
        if guidance is not None:
            loss = loss + guidance.loss()
        if kind == "dense":
            loss = loss + dense_loss(out.attentions, int(heads), ids_BT)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def compiled_names(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(COMPILED)]


def dense_loss(maps: tuple[torch.Tensor, ...], heads: int, ids_BT: torch.Tensor) -> torch.Tensor:
    """The loss of `mean` and `indicator` from whole attention maps."""
    T = ids_BT.shape[1]
    visible_TT = torch.ones(T, T, dtype=torch.bool, device=ids_BT.device).tril()
    marked_BT = (ids_BT >= min(WORDS)) & (ids_BT <= max(WORDS))
    pattern_BTT = (marked_BT[:, None, :] & visible_TT).float()
    pairs = visible_TT.sum()
    terms = [((h[:, j] - pattern_BTT) ** 2).sum((1, 2)).mean() / pairs for h in maps for j in range(heads)]
    return DEFAULT_WEIGHT * torch.stack(terms).sum()


def time_steps(arguments: argparse.Namespace) -> None:
    names = arguments.contenders.split(",")
    shape = (arguments.layers, arguments.batch, arguments.length, arguments.device, arguments.dtype)
    # Before this process allocates memory of the GPU.
    memory = {name: peak_memory(name, *shape) for name in names}
    with ExitStack() as stack:
        steps = {name: contender(name, *shape, stack) for name in names}
        for _ in range(2 if compiled_names(names) else 1):  # in the second round all graphs are there
            for step in steps.values():
                step()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(arguments.repeats):
            for name in names:
                began = time.perf_counter()
                steps[name]()
                seconds[name].append(time.perf_counter() - began)
    print(
        "| contender | median step | ratio of medians | median of the rounds' ratios | peak memory | ratio |"
    )
    print("|---|---|---|---|---|---|")
    for name in names:
        twin = "unguided" + (COMPILED if name.endswith(COMPILED) else "")
        base, base_memory = statistics.median(seconds[twin]), memory[twin]
        paired = [ours / theirs for ours, theirs in zip(seconds[name], seconds[twin])]
        median, size = statistics.median(seconds[name]), memory[name]
        print(
            f"| {name} | {median:.4f} s | {median / base:.3f} | {statistics.median(paired):.3f} | "
            f"{size / 2**20:,.0f} MiB | {size / base_memory:.3f} |"
        )


def peak_resident() -> int:
    """Largest resident set of this process since its start, in bytes (getrusage would include its
    parent's)."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def peak_memory(name: str, layers: int, batch: int, length: int, device: str, dtype: str) -> int:
    """Bytes, from a child process that runs two steps of one contender."""
    child = [sys.executable, __file__, "child", name, *map(str, (layers, batch, length)), device, dtype]
    return int(json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout))


def child(name: str, layers: str, batch: str, length: str, device: str, dtype: str) -> None:
    before = psutil.Process().memory_info().rss
    with ExitStack() as stack:
        step = contender(name, int(layers), int(batch), int(length), device, dtype, stack)
        step()
        step()
    if device == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:
        print(peak_resident() - before)


def memory_by_length(arguments: argparse.Namespace) -> None:
    """Print peak memory above that of the unguided step by length: O(T) for ours, O(T²) for dense maps."""
    table = Table(
        "length", "unguided", "ours-4 above it", "dense-4 above it", title="peak memory, 2 layers, B=1"
    )
    for length in map(int, arguments.lengths.split(",")):
        peaks = {}
        for name in ("unguided", "ours-4", "dense-4"):
            if name == "dense-4" and length > arguments.dense_up_to:
                continue
            peaks[name] = peak_memory(name, 2, 1, length, arguments.device, arguments.dtype)
        above = {name: f"{(peak - peaks['unguided']) / 2**20:+.0f} MiB" for name, peak in peaks.items()}
        table.add_row(
            str(length),
            f"{peaks['unguided'] / 2**20:.0f} MiB",
            above["ours-4"],
            above.get("dense-4", "not run"),
        )
    Console().print(table)


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="time", choices=("time", "memory"))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--contenders", default="unguided,ours-1,ours-4,dense-1,dense-4")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"))
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192")
    parser.add_argument("--dense-up-to", type=int, default=4096)
    arguments = parser.parse_args()
    arguments.dtype = arguments.dtype or ("bf16" if arguments.device == "cuda" else "fp32")
    (memory_by_length if arguments.what == "memory" else time_steps)(arguments)


if __name__ == "__main__":
    main()
