"""The cost of guidance: step time and peak memory, compared with the unguided step and with dense maps.

    python benchmarks/guidance.py [--layers 6] [--batch 1] [--length 1024] [--repeats 7]
                                  [--device cpu] [--dtype fp32] [--contenders unguided,ours-4,…] [--no-memory]
    python benchmarks/guidance.py host [--repeats 41] [--launch 28] [--contenders unguided,joint-4,tap-4,…]
    python benchmarks/guidance.py memory [--lengths 512,1024,2048,4096,8192]

The contenders run a whole training step (forward, backward, fused AdamW) of a GPT-2 with gpt2's width:
  unguided   the model's own SDPA
  ours-N     N heads of every layer guided by gaguide: joint on a CPU, tap on a GPU
  joint-N    the same, output and loss of guided heads in one operation a layer
  tap-N      the same, the loss of all layers in addition to the model's own attention
  inplace-N, gathered-N  the same, whatever the size of the tensors by one of its two ways (`model/tap.py`)
  dense-N    the same loss from eager attention maps (output_attentions=True), full H and P
A name that ends in -compiled runs as `train.compile: true` does, and is compared with unguided-compiled.
Contenders alternate in one process. Ratios are of wall-clock / processor time. Peak memory is that of one
child process per contender (CPU: resident set, minus that before the first step; GPU: allocated). The
default on a GPU is bf16.

`host` runs them with gpt2's layers and heads on tensors so small that nearly all time is the host's, one
thread. Without a GPU a launch of a Triton kernel is a wait of --launch microseconds (28 measured for torch
2.13 and Triton 3.9), and the kernels return zeros: the ratios are those of a GPU that waits for its host.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from gaguide.engine.compiled import CompiledForward
from gaguide.guidance import DEFAULT_WEIGHT, Assignment, GuidancePlan, TokenSet, guide
from gaguide.model import adapt_to, fuse_activations, tap
from gaguide.model.packed import use_packed_attention

COMPILED = "-compiled"
KINDS = {"ours": "auto", "joint": "joint", "tap": "tap", "inplace": "tap", "gathered": "tap"}
"""Contender → method of guidance."""
LIMITS = {"inplace": 0, "gathered": sys.maxsize}
"""Contender → numbers in a layer's queries up to which heads are gathered, where it is not the default."""
Shape = tuple[GPT2Config, int, int, str, str]
"""Configuration, sequences, tokens, device and dtype."""
Seconds = tuple[float, float]
"""Wall-clock and processor time of a step."""
WORDS = frozenset(range(100, 600))  # about one token in a hundred, as the contrast set in English


def config_of(layers: int, length: int, **others: int) -> GPT2Config:
    return GPT2Config(n_layer=layers, n_positions=length, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, **others)


def model_of(config: GPT2Config, attention: str, device: str, dtype: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(deepcopy(config))
    model.set_attn_implementation(attention)
    model.loss_type = "ForCausalLM"
    fuse_activations(model)  # as training does
    adapt_to(model, torch.device(device), dtype)
    return model.to(device, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]).train()


def contender(name: str, shape: Shape, stack: ExitStack) -> Callable[[], None]:
    """A function that runs one training step of the named contender."""
    base = name.removesuffix(COMPILED)
    kind, _, heads = base.partition("-")
    config, batch, length, device, dtype = shape
    plan = GuidancePlan((Assignment(TokenSet("words", WORDS), tuple(range(int(heads or 1)))),))
    model = model_of(config, "eager" if kind == "dense" else "sdpa", device, dtype)
    packed = use_packed_attention(model)
    maps = {"output_attentions": True} if kind == "dense" else {}  # an argument more would bring masks back
    compiled = CompiledForward(model, True, packed) if name != base else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, config.vocab_size, (batch, length), generator=generator).to(device)
    guidance = stack.enter_context(guide(model, plan, method=KINDS[kind])) if kind in KINDS else None

    small = LIMITS.get(kind, tap.SMALL)

    def step() -> None:
        tap.SMALL = small
        if compiled is not None:
            compiled.prepare({"input_ids": ids_BT})
        out = model(input_ids=ids_BT, labels=ids_BT, use_cache=False, **maps)
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
    numbers = (arguments.layers, arguments.batch, arguments.length, arguments.device, arguments.dtype)
    # Before this process allocates memory of the GPU.
    memory = {name: peak_memory(name, *numbers) for name in names if arguments.memory}
    shape = (config_of(arguments.layers, arguments.length), *numbers[1:])
    show(in_turns(names, shape, arguments.repeats), memory)


def time_host(arguments: argparse.Namespace) -> None:
    """The same on tensors so small that the host is the limit."""
    torch.set_num_threads(1)
    config = config_of(12, 16, n_head=12, n_embd=24, vocab_size=2048, bos_token_id=0, eos_token_id=0)
    with ExitStack() as stack:
        if arguments.device == "cpu":
            stack.enter_context(emulated_launches(arguments.launch * 1e-6))
        shape = (config, 1, 8, arguments.device, arguments.dtype)
        show(in_turns(arguments.contenders.split(","), shape, arguments.repeats), {})


@contextmanager
def emulated_launches(seconds: float) -> Iterator[None]:
    """Inside, the Triton kernels are used without a GPU; each launch takes `seconds` and returns zeros."""
    from gaguide.guidance import backend, triton_kernels

    class Waits:
        """A launch of `seconds`, in which the outputs, at these places of the arguments, become zeros."""

        def __init__(self, *outputs: int) -> None:
            self.outputs = outputs

        def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
            return self.launch

        def launch(self, *arguments: Any, **__: Any) -> None:
            end = time.perf_counter() + seconds
            for place in self.outputs:
                arguments[place].zero_()
            while time.perf_counter() < end:
                pass

    kernels = {
        "forward": Waits(*range(10, 16)),
        "backward_queries": Waits(11, 14),
        "backward_keys": Waits(12),
    }
    with (
        mock.patch.object(backend, "is_fused", lambda *_: True),
        mock.patch.multiple(triton_kernels, **kernels),
    ):
        yield


def in_turns(names: list[str], shape: Shape, repeats: int) -> dict[str, list[Seconds]]:
    """Seconds of every step of contenders that take turns."""
    with ExitStack() as stack:
        steps = {name: contender(name, shape, stack) for name in names}
        for _ in range(3 if compiled_names(names) else 1):  # in the second round all graphs are there
            for step in steps.values():
                step()
        seconds: dict[str, list[Seconds]] = {name: [] for name in names}
        for _ in range(repeats):
            for name in names:
                began = time.perf_counter(), time.process_time()
                steps[name]()
                ended = time.perf_counter(), time.process_time()
                seconds[name].append((ended[0] - began[0], ended[1] - began[1]))
    return seconds


def show(seconds: dict[str, list[Seconds]], memory: dict[str, int]) -> None:
    """Print a table in Markdown; each contender is compared with its unguided twin."""
    print(
        "| contender | median step | processor | ratio of medians | median of the rounds' ratios | "
        "peak memory | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, taken in seconds.items():
        twin = "unguided" + (COMPILED if name.endswith(COMPILED) else "")
        wall, processor = medians(taken)
        apart = " / ".join(f"{ours / base:.3f}" for ours, base in zip(medians(taken), medians(seconds[twin])))
        rounds = [(a[0] / b[0], a[1] / b[1]) for a, b in zip(taken, seconds[twin])]
        paired = " / ".join(f"{ratio:.3f}" for ratio in medians(rounds))
        size = f"{memory[name] / 2**20:,.0f} MiB | {memory[name] / memory[twin]:.3f}" if memory else "|"
        print(
            f"| {name} | {1000 * wall:,.1f} ms | {1000 * processor:,.1f} ms | {apart} | {paired} | {size} |"
        )


def medians(pairs: list[Seconds]) -> Seconds:
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


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
    shape = (config_of(int(layers), int(length)), int(batch), int(length), device, dtype)
    with ExitStack() as stack:
        step = contender(name, shape, stack)
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
    parser.add_argument("what", nargs="?", default="time", choices=("time", "host", "memory"))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--contenders", help="default: those of the tables in RESULTS.md")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--launch", type=float, default=28.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"))
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192")
    parser.add_argument("--dense-up-to", type=int, default=4096)
    arguments = parser.parse_args()
    arguments.dtype = arguments.dtype or ("bf16" if arguments.device == "cuda" else "fp32")
    eager = "unguided,joint-4,tap-4,joint-12,tap-12"
    both = f"{eager},{','.join(name + COMPILED for name in eager.split(','))}"
    default = both if arguments.what == "host" else "unguided,ours-1,ours-4,dense-1,dense-4"
    arguments.contenders = arguments.contenders or default
    {"time": time_steps, "host": time_host, "memory": memory_by_length}[arguments.what](arguments)


if __name__ == "__main__":
    main()
