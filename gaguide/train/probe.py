"""`train.micro_batch: auto`: the most sequences that fit a rank's memory in one forward pass.

On a GPU, sizes are tried with real forward and backward passes, next to a reserve for the optimizer's state.
On a CPU, where running out of memory ends the process, the estimate of `gaguide.cost.memory` decides. All
ranks agree on the smallest. The global batch does not change.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from gaguide.config import divisors, plan_batch
from gaguide.cost.memory import Memory, MemorySetup, estimate_memory
from gaguide.distributed import World, all_gather, broadcast, raise_together
from gaguide.engine.config import load_deepspeed_json
from gaguide.engine.config_resolved import DeepSpeedConfig
from gaguide.errors import UserError
from gaguide.guidance import guide, marked
from gaguide.log import run_files, say
from gaguide.model import adapt_to, build_model, checkpoint_activations, shape_of
from gaguide.model.freeze import freeze
from gaguide.model.precision import PRECISIONS, torch_dtype
from gaguide.train.device import available_memory
from gaguide.train.job import Job
from gaguide.train.preflight import complete_json

# Share of the free memory that is used; the rest is for fragmentation, workspaces and other processes.
_USABLE = {"cuda": 0.92, "cpu": 0.85}


def settle_micro_batch(job: Job, deepspeed_json: Path, world: World) -> Job:
    """The job with its micro batch as a number; a collective. A resumed run keeps its micro batch."""
    if job.run.train.micro_batch != "auto":
        return job
    share = job.batch.global_batch // world.size
    size = broadcast(_earlier_micro_batch(job, world) if world.is_main else None)
    how = "as in the earlier start"
    if size is None:
        size = min(all_gather(raise_together(lambda: _largest_micro_batch(job, divisors(share), world))))
        how = "measured" if world.device.type == "cuda" else "estimated"
    batch = plan_batch(job.batch.global_batch, size, world.size)
    settings = raise_together(
        lambda: complete_json(load_deepspeed_json(deepspeed_json), batch, job.run, job.model)
    )
    if world.is_main:
        say(f"micro batch: {size} of a rank's {share} sequences ({how}), {batch.accumulation} in a step")
    return replace(job, batch=batch, deepspeed=settings)


def largest(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of the ascending `candidates` that fits, by bisection; None if none fits."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(candidates[middle - 1]):
            low = middle
        else:
            high = middle - 1
    return candidates[low - 1] if low else None


def _earlier_micro_batch(job: Job, world: World) -> int | None:
    """The micro batch of an earlier start into the same folder by as many ranks; None without one."""
    path = job.output / run_files.DEEPSPEED
    if not path.is_file():
        return None
    earlier = DeepSpeedConfig(json.loads(path.read_text("utf-8")))
    sequences = earlier.micro_batch * earlier.accumulation * world.size
    return earlier.micro_batch if sequences == job.batch.global_batch else None


def _largest_micro_batch(job: Job, candidates: Sequence[int], world: World) -> int:
    device = world.device
    free = int(_USABLE[device.type] * available_memory(device))
    found = None
    if device.type == "cuda":
        found = largest(candidates, _Trial(job, free, world))
    else:
        found = largest(candidates, lambda size: _needed(estimate(job, size, world)) <= free)
    if found is None:
        needed = _needed(estimate(job, candidates[0], world))
        problem = f"even {candidates[0]} does not fit: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        remedy = "set train.gradient_checkpointing: true, use more ranks, or a JSON with offload"
        raise UserError.of("train.micro_batch", problem, remedy, "auto")
    return found


def estimate(job: Job, size: int, world: World) -> Memory:
    """Estimated memory of this job with a micro batch of `size`."""
    shape = shape_of(job.model.config)
    heads = job.plan.resolve(shape.layers, shape.heads) if job.plan else {}
    layers = {layer for layer, _ in heads}
    precision = job.deepspeed.precision if job.deepspeed.precision in ("bf16", "fp16") else "fp32"
    on_gpu, method = world.device.type == "cuda", job.run.guidance.method
    setup = MemorySetup(
        micro_batch=size,
        block_length=job.run.data.block_length,
        zero_stage=job.deepspeed.zero_stage,
        ranks=world.size,
        precision=cast(Literal["fp32", "bf16", "fp16"], precision),
        accumulation=max(1, job.batch.global_batch // world.size // size),
        checkpointing=job.run.train.gradient_checkpointing,
        guided_heads=-(-len(heads) // len(layers)) if layers else 0,
        guided_layers=len(layers),
        tapped=method == "tap" or (method == "auto" and on_gpu),
        fused_attention=job.run.model.attention != "eager" and (on_gpu or not shape.dropout),
        offload_optimizer=job.deepspeed.offload_optimizer,
        offload_parameters=job.deepspeed.offload_parameters,
        sub_group=job.deepspeed.sub_group_size,
        trained=job.trained,
        added=job.added,
        packed=0 if job.adapter is None else job.adapter.packed,
    )
    return estimate_memory(shape, setup)


def _needed(memory: Memory) -> int:
    return memory.peak + memory.host  # on a CPU, device and host share one memory


class _Trial:
    """Whether a size's forward and backward pass fits a GPU next to the states of training."""

    def __init__(self, job: Job, free: int, world: World) -> None:
        self.job, self.world, self.free = job, world, free

    def __call__(self, size: int) -> bool:
        device = self.world.device
        try:
            self._pass(size, device)
            return torch.cuda.max_memory_allocated(device) <= self.free
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def _pass(self, size: int, device: torch.device) -> None:
        job = self.job
        precision = job.deepspeed.precision  # under autocast the weights are fp32
        dtype = torch_dtype(precision) if precision in PRECISIONS else torch.float32
        memory = estimate(job, size, self.world)
        # The trial itself holds weights and gradients; the rest of training's states is reserved.
        shape = shape_of(job.model.config)
        share = 1.0 if job.trained is None else job.trained / (shape.parameters + job.added)
        own = int((1 + share) * memory.weights) if job.deepspeed.zero_stage < 3 else 0
        reserve = max(0, memory.states + memory.gradients + memory.buffers - own)
        held = torch.empty(reserve, dtype=torch.uint8, device=device)
        model: Any = build_model(job.model, job.run.seed)
        freeze(model, job.frozen)
        if job.adapter is not None:
            job.adapter.add_to(model, job.run.seed)
        model = model.to(device=device, dtype=dtype)
        adapt_to(model, device, precision)
        if job.run.train.gradient_checkpointing:
            checkpoint_activations(model)
        ids = torch.zeros(size, job.run.data.block_length, dtype=torch.int64, device=device)
        marks = {name: ids.bool() for name in job.plan.marks} if job.plan else {}
        method = job.run.guidance.method
        with marked(marks), guide(model, job.plan, method=method) if job.plan else nullcontext() as guidance:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            (loss if guidance is None else loss + guidance.loss()).backward()
        torch.cuda.synchronize(device)
        del held
