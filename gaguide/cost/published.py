"""Published training speeds, and the errors of the model's predictions, by GPU.

`gaguide plan` prints its speeds as ranges of this width. The runs are of other programs (FSDP, hand-written
CUDA), since the project's own are the only ones of gaguide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from gaguide.cost.estimate import estimate
from gaguide.cost.request import CostRequest
from gaguide.model import ModelShape, gpt2_shape
from gaguide.model.sizes import GPT2_VOCABULARY, Size


@dataclass(frozen=True)
class PublishedRun:
    """One published speed of a GPT-2-like model in bf16, on nodes of eight GPUs or on a single GPU."""

    source: str
    """Where it was published, a key of `SOURCES`."""
    gpu: str
    """A key of `GPUS`."""
    ranks: int
    """Number of GPUs."""
    width: int
    """Width of the model."""
    layers: int
    """Number of layers."""
    heads: int
    """Heads of a layer."""
    block: int
    """Tokens per sequence."""
    micro: int
    """Sequences per rank in a forward pass."""
    passes: int
    """Forward passes per optimizer step."""
    tokens_per_second: float
    """Published tokens per second and GPU."""
    stage: int = 3
    """The ZeRO stage with the run's communication: 3 for FSDP, 2 for data parallelism."""
    checkpointing: bool = False
    """Whether activations were recomputed."""


SOURCES = {
    "llm-foundry": "github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md (FSDP, amp_bf16)",
    "llm.c": "github.com/karpathy/llm.c, discussions 481 and 677 (hand-written CUDA)",
    "nanoGPT": "github.com/karpathy/nanoGPT, README.md and issue 110 (torch.compile)",
    "gaguide": "benchmarks/RESULTS.md, On a GPU (before GELU became one operation)",
}

_R = PublishedRun
# Not looked up again: llm.c, nanoGPT. The H100 rows of llm-foundry were compared with its table.
RUNS = (
    _R("llm-foundry", "a100-80", 8, 768, 12, 12, 1024, 64, 2, 156_468),
    _R("llm-foundry", "a100-80", 8, 1024, 24, 16, 1024, 64, 2, 64_813),
    _R("llm-foundry", "a100-80", 8, 1536, 24, 12, 2048, 24, 2, 32_434),
    _R("llm-foundry", "a100-80", 8, 2048, 24, 16, 1024, 18, 4, 22_112),
    _R("llm-foundry", "a100-80", 8, 2560, 32, 20, 2048, 10, 2, 10_811),
    _R("llm-foundry", "a100-80", 8, 4096, 32, 32, 2048, 6, 2, 4_641),
    _R("llm-foundry", "a100-80", 8, 5120, 40, 40, 2048, 2, 3, 2_262),
    _R("llm-foundry", "a100-80", 8, 7168, 48, 56, 2048, 3, 21, 916, checkpointing=True),
    _R("llm.c", "a100-80", 8, 768, 12, 12, 1024, 64, 1, 231_481, stage=2),
    _R("nanoGPT", "a100-40", 8, 768, 12, 12, 1024, 12, 5, 109_714, stage=2),
    _R("llm-foundry", "h100", 8, 1536, 24, 12, 1024, 48, 2, 78_581),
    _R("llm-foundry", "h100", 8, 2048, 24, 16, 2048, 14, 1, 45_455),
    _R("llm-foundry", "h100", 8, 2560, 32, 20, 1024, 20, 6, 27_046),
    _R("llm-foundry", "h100", 8, 4096, 32, 32, 2048, 6, 1, 10_643),
    _R("llm-foundry", "h100", 8, 5120, 40, 40, 2048, 2, 1, 4_792),
    _R("llm-foundry", "h100", 64, 2048, 24, 16, 2048, 20, 1, 44_402),
    _R("llm-foundry", "h100", 64, 5120, 40, 40, 2048, 2, 1, 4_800),
    _R("llm-foundry", "h100", 8, 7168, 48, 56, 2048, 3, 21, 2_002, checkpointing=True),
    _R("llm.c", "h100", 8, 768, 12, 12, 1024, 64, 1, 462_963, stage=2),
    _R("llm.c", "h100", 8, 1600, 48, 25, 1024, 16, 8, 48_539, stage=2),
    _R("gaguide", "h100", 1, 768, 12, 12, 1024, 16, 2, 202_600, stage=2),
)


class SpeedRange:
    """Bounds of a range of speeds, as factors of a predicted speed."""

    slowest: float
    fastest: float

    def speeds(self, predicted: float) -> tuple[float, float]:
        """The slowest and the fastest speed."""
        return predicted * self.slowest, predicted * self.fastest

    def times(self, predicted: float) -> tuple[float, float]:
        """The shortest and the longest time, where `predicted` is the time at the predicted speed."""
        return predicted / self.fastest, predicted / self.slowest


@dataclass(frozen=True)
class Spread(SpeedRange):
    """How published speeds compare with the model's, as published / predicted."""

    runs: tuple[PublishedRun, ...]
    """The runs that were compared."""
    slowest: float
    """The smallest ratio."""
    middle: float
    """The geometric mean of the ratios."""
    fastest: float
    """The largest ratio."""
    own_gpu: bool
    """Whether the runs are of this GPU; otherwise of all that have any."""

    @property
    def error(self) -> float:
        """Largest error of the model's predictions, as a factor."""
        return max(self.fastest, 1 / self.slowest)


def run_request(run: PublishedRun) -> CostRequest:
    """The request that predicts `run`."""
    return CostRequest(
        _shape(run),
        gpus=min(run.ranks, 8),
        nodes=-(-run.ranks // 8),
        gpu=run.gpu,
        link="ib-ndr" if run.gpu == "h100" else "ib-hdr",
        cards=8,
        block_length=run.block,
        global_batch=run.ranks * run.micro * run.passes,
        micro_batch=run.micro,
        zero_stage=run.stage,
        checkpointing=run.checkpointing,
    )


def ratio(run: PublishedRun) -> float:
    """The published speed as a multiple of the predicted one."""
    return run.tokens_per_second * run.ranks / estimate(run_request(run)).tokens_per_second


@cache
def spread(gpu: str) -> Spread:
    """How far published speeds lie from the predictions on `gpu`; on a GPU without any, on all GPUs."""
    own = tuple(run for run in RUNS if run.gpu == gpu)
    # The two A100s differ in memory only.
    if gpu.startswith("a100"):
        own = tuple(run for run in RUNS if run.gpu.startswith("a100"))
    runs = own or RUNS
    ratios = [ratio(run) for run in runs]
    return Spread(
        runs=runs,
        slowest=min(ratios),
        middle=math.exp(sum(math.log(each) for each in ratios) / len(ratios)),
        fastest=max(ratios),
        own_gpu=bool(own),
    )


def _shape(run: PublishedRun) -> ModelShape:
    size = Size(run.layers, run.heads, run.width, run.block)
    return replace(gpt2_shape(size, GPT2_VOCABULARY), dropout=False)
