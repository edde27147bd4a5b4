"""Applies a DeepSpeed JSON to a request, after the checks and completions that training makes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from gaguide.config import BatchPlan, RunConfig, plan_batch
from gaguide.cost.hardware import GPUS
from gaguide.cost.memory import Offload, Precision
from gaguide.cost.request import CostRequest
from gaguide.engine.config import Precisions, RunSide, precision, resolve_deepspeed
from gaguide.engine.config_offload import offload_device, sub_group_size
from gaguide.errors import UserError

_RUN_OWNED_KEYS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
)  # fmt: skip


def with_deepspeed(
    request: CostRequest, config: Mapping[str, Any], run: RunConfig | None = None
) -> CostRequest:
    """`request` with stage, precision, offload and buckets of a DeepSpeed JSON; `auto` resolves as in
    training.

    Raises a `UserError` if training would refuse the JSON. Imports DeepSpeed, which takes seconds the first
    time.
    """
    resolved = _resolve(dict(config), request, run)
    zero = resolved.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    kind = precision(resolved)
    return replace(
        request,
        zero_stage=stage,
        precision=cast(Precision, "autocast" if kind.endswith("autocast") else kind),
        offload_optimizer=cast(Offload, offload_device(resolved, "optimizer")),
        offload_parameters=cast(Offload, offload_device(resolved, "param")),
        overlap=bool(zero.get("overlap_comm", stage == 3)),
        bucket=int(zero.get("reduce_bucket_size", 500_000_000)),
        gather=int(zero.get("stage3_prefetch_bucket_size", 50_000_000)),
        kept_parameters=_kept_parameters(zero),
        sub_group=sub_group_size(resolved),
    )


def _resolve(config: dict[str, Any], request: CostRequest, run: RunConfig | None) -> dict[str, Any]:
    gpu = GPUS.get(request.gpu)
    device = Precisions(gpu is None or gpu.bf16, gpu is None or gpu.bf16, gpu is None or gpu.fp16)
    if run is None:  # without a run there are no batch sizes or clipping for the JSON's to agree with
        config = {key: value for key, value in config.items() if key not in _RUN_OWNED_KEYS}
    ranks = max(request.ranks, 1)
    # No accumulation where the micro batch is open: `check` decides for each candidate whether it is allowed.
    batch = BatchPlan(request.global_batch, max(request.global_batch // ranks, 1), 1, ranks)
    if request.micro_batch is not None:
        with suppress(UserError):
            batch = plan_batch(request.global_batch, request.micro_batch, ranks)
    side = RunSide(
        run.train.gradient_clipping if run else 0.0,
        Path(run.output if run else "."),
        width=request.model.width,
    )
    return resolve_deepspeed(config, batch, side, device)


def _kept_parameters(zero: Mapping[str, Any]) -> int:
    """Elements that stage 3 keeps gathered from one use to the next.

    DeepSpeed keeps a parameter that is used again within the reuse distance (which counts the distance in the
    model twice), and what its prefetcher has fetched within the limit of live parameters.
    """
    reuse = int(zero.get("stage3_max_reuse_distance", 1_000_000_000))
    return max(reuse // 2, int(zero.get("stage3_max_live_parameters", 1_000_000_000)))
