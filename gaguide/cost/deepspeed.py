"""Applies a DeepSpeed JSON to a request, after the checks and completions that training makes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

from gaguide.config import BatchPlan, RunConfig, plan_batch
from gaguide.cost.hardware import GPUS
from gaguide.cost.memory import Precision
from gaguide.cost.request import CostRequest
from gaguide.engine.config import DevicePrecisions, RunValues, resolve_deepspeed
from gaguide.engine.config_resolved import DeepSpeedConfig, JsonObject
from gaguide.errors import UserError

_RUN_OWNED_KEYS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
)  # fmt: skip


def with_deepspeed(request: CostRequest, config: JsonObject, run: RunConfig | None = None) -> CostRequest:
    """`request` with stage, precision, offload and buckets of a DeepSpeed JSON; `auto` resolves as in
    training.

    Raises a `UserError` if training would refuse the JSON. Imports DeepSpeed, which takes seconds the first
    time.
    """
    resolved = _resolve(config, request, run)
    kind = resolved.precision
    return replace(
        request,
        zero_stage=resolved.zero_stage,
        precision=cast(Precision, "autocast" if kind.endswith("autocast") else kind),
        offload_optimizer=resolved.offload_optimizer,
        offload_parameters=resolved.offload_parameters,
        overlap=resolved.overlaps_communication,
        bucket=resolved.reduce_bucket_size,
        gather=resolved.prefetch_bucket_size,
        kept_parameters=_kept_parameters(resolved),
        sub_group=resolved.sub_group_size,
    )


def _resolve(config: JsonObject, request: CostRequest, run: RunConfig | None) -> DeepSpeedConfig:
    gpu = GPUS.get(request.gpu)
    device = DevicePrecisions(gpu is None or gpu.bf16, gpu is None or gpu.bf16, gpu is None or gpu.fp16)
    if run is None:  # without a run there are no batch sizes or clipping for the JSON's to agree with
        config = {key: value for key, value in config.items() if key not in _RUN_OWNED_KEYS}
    ranks = max(request.ranks, 1)
    # No accumulation where the micro batch is open: `check` decides for each candidate whether it is allowed.
    batch = BatchPlan(request.global_batch, max(request.global_batch // ranks, 1), 1, ranks)
    if request.micro_batch is not None:
        with suppress(UserError):
            batch = plan_batch(request.global_batch, request.micro_batch, ranks)
    values = RunValues(
        run.train.gradient_clipping if run else 0.0,
        Path(run.output if run else "."),
        width=request.model.width,
    )
    return resolve_deepspeed(config, batch, values, device)


def _kept_parameters(config: DeepSpeedConfig) -> int:
    """Elements that stage 3 keeps gathered from one use to the next.

    DeepSpeed keeps a parameter that is used again within the reuse distance (which counts the distance in the
    model twice), and prefetched parameters within the limit of live parameters.
    """
    return max(config.max_reuse_distance // 2, config.max_live_parameters)
