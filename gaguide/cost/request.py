"""`CostRequest`: the training whose cost is estimated, and its checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from gaguide.config import RunConfig, plan_batch
from gaguide.config.experiments import EXPERIMENTS
from gaguide.cost.hardware import GPUS, LINKS
from gaguide.cost.memory import MemorySetup, TrainingSettings
from gaguide.errors import Fault, FaultCollector, UserError, not_one_of
from gaguide.guidance.row_blocks import rows_of_block
from gaguide.model import ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class CostRequest(TrainingSettings):
    """A training whose cost is to be estimated. Guided heads are those of each layer, in every layer."""

    model: ModelShape
    """Shape of the model."""
    gpus: int = 1
    """GPUs per node, one rank each."""
    nodes: int = 1
    """Number of nodes."""
    gpu: str = "a100-80"
    """GPU model, a key of `GPUS`."""
    link: str = "ib-hdr"
    """Network between nodes, a key of `LINKS`."""
    cards: int = 1
    """Network adapters per node."""
    global_batch: int = 512
    """Sequences per optimizer step, over all ranks."""
    micro_batch: int | None = None
    """Sequences per rank in a forward pass; None is a rank's whole share of the global batch."""
    tokens: int | None = None
    """Token budget of the whole training."""
    overlap: bool | None = None
    """Whether communication overlaps with compute; None is yes at stage 3 only."""
    pace: float = 1.0
    """Measured speed as a multiple of the predicted one; every time is divided by it."""

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.gpus * self.nodes

    @property
    def accumulation(self) -> int:
        """Forward passes of a rank per optimizer step; valid after `check`."""
        return plan_batch(self.global_batch, self.micro_batch, self.ranks).accumulation

    @property
    def setup(self) -> MemorySetup:
        """The request in the form that `estimate_memory` takes; valid after `check`."""
        batch = plan_batch(self.global_batch, self.micro_batch, self.ranks)
        return MemorySetup(
            micro_batch=batch.micro_batch,
            ranks=self.ranks,
            accumulation=batch.accumulation,
            guided_layers=self.model.layers if self.guided_heads else 0,
            row_block=rows_of_block(self.block_length),
            overlap=self.zero_stage == 3 if self.overlap is None else self.overlap,
            **{each.name: getattr(self, each.name) for each in fields(TrainingSettings)},
        )


def check(request: CostRequest) -> None:
    """Raise a `UserError` with every fault of the request."""
    with FaultCollector() as faults:
        for find in (_counts, _names, _shape, _precision, _offload):
            faults.add(*find(request))
        if not faults:
            _check_batch(request)


def _check_batch(request: CostRequest) -> None:
    batch = plan_batch(request.global_batch, request.micro_batch, request.ranks)
    if request.zero_stage == 1 and request.precision != "fp32" and batch.accumulation > 1:
        problem = f"at stage 1 DeepSpeed would accumulate micro batches in {request.precision}"
        remedy = "use stage 2, or a micro batch that needs no accumulation"
        raise UserError.of("micro batch", problem, remedy, batch.micro_batch)


def trains_part(run: RunConfig) -> bool:
    """Whether a run trains only some parameters, or adapters."""
    return bool(run.train.freeze or run.train.trainable) or run.train.lora is not None


def with_run(request: CostRequest, run: RunConfig, config: PretrainedConfig | None = None) -> CostRequest:
    """`request` with batch, block length, checkpointing, guided heads and trained share of a run.

    config: of the run's model; without it (None) everything counts as trained. Imports torch only for a run
    that trains a part or adapters. Raises a `UserError` if these do not fit the model.
    """
    heads = len(EXPERIMENTS.get(run.guidance.experiment, ()))
    if run.guidance.plan:
        heads = max((len(entry.heads) for entry in run.guidance.plan), default=0)
    if config is not None and trains_part(run):
        from gaguide.cost.trained import count_trained

        trained, added, packed = count_trained(run, config)
        request = replace(request, trained=trained, added=added, packed=packed)
    return replace(
        request,
        block_length=run.data.block_length,
        global_batch=run.train.global_batch,
        micro_batch=run.train.micro_batch if run.train.micro_batch != "auto" else None,
        checkpointing=run.train.gradient_checkpointing,
        guided_heads=heads,
        tapped=run.guidance.method != "joint",
    )


def _counts(request: CostRequest) -> Iterator[Fault]:
    least = {"gpus": 1, "nodes": 1, "cards": 1, "block_length": 2, "global_batch": 1, "guided_heads": 0}
    for name, bound in (least | {"micro_batch": 1, "tokens": 1}).items():
        value = getattr(request, name)
        if value is not None and value < bound:
            yield Fault(_option(name), f"must be at least {bound}", f"give {bound} or more", value)


def _names(request: CostRequest) -> Iterator[Fault]:
    if request.gpu not in GPUS:
        yield not_one_of("--gpu", request.gpu, GPUS)
    if request.link not in LINKS:
        yield not_one_of("--link", request.link, LINKS)
    if request.zero_stage not in range(4):
        yield not_one_of("--stage", request.zero_stage, range(4))


def _shape(request: CostRequest) -> Iterator[Fault]:
    positions = request.model.positions
    if positions and request.block_length > positions:
        problem = f"must be at most {positions}, the positions of the model"
        yield Fault("--block-length", problem, f"give {positions} or less", request.block_length)
    if request.guided_heads > request.model.heads:
        problem = f"must be at most {request.model.heads}, the heads of a layer"
        yield Fault("--guided-heads", problem, "give fewer", request.guided_heads)


def _precision(request: CostRequest) -> Iterator[Fault]:
    gpu, precision = GPUS.get(request.gpu), request.precision
    if gpu is not None and precision in ("bf16", "fp16") and not getattr(gpu, precision):
        other = "fp16" if precision == "bf16" else "bf16"
        problem = f"{request.gpu} does not compute in {precision}"
        yield Fault("--precision", problem, f"give {other} or fp32", precision)
    if precision == "autocast" and request.zero_stage > 0:
        yield Fault("--precision", "autocast needs stage 0", "give bf16, fp16 or fp32", request.zero_stage)
    if precision in ("bf16", "fp16") and request.zero_stage == 0:
        problem = "stage 0 keeps no fp32 weights to export"
        yield Fault("--stage", problem, f"use stage 1 or higher with {precision}", 0)


def _offload(request: CostRequest) -> Iterator[Fault]:
    if request.offload_optimizer != "none" and request.zero_stage < 1:
        remedy = "use stage 1 or higher"
        yield Fault("--offload-optimizer", "needs ZeRO", remedy, request.offload_optimizer)
    elif request.offload_optimizer == "nvme" and request.zero_stage < 3:
        yield Fault("--offload-optimizer", "nvme needs stage 3", "use stage 3, or cpu", "nvme")
    if request.offload_parameters == "nvme" and request.ranks > 1:
        problem = f"DeepSpeed 0.19 fails on it with {request.ranks} ranks"
        yield Fault("--offload-parameters", problem, "use cpu", "nvme")
    if request.offload_parameters != "none" and request.zero_stage < 3:
        yield Fault("--offload-parameters", "needs stage 3", "use stage 3", request.offload_parameters)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
