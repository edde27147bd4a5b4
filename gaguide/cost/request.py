"""What a plan is asked for, from arguments and from a run; and whether it makes sense."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gaguide.config import RunConfig, plan_batch
from gaguide.cost.hardware import GPUS, LINKS
from gaguide.cost.memory import MemorySetup, Offload, Precision
from gaguide.errors import Fault, UserError
from gaguide.guidance import EXPERIMENTS
from gaguide.guidance.kernel import rows_of_block
from gaguide.model import ModelShape


@dataclass(frozen=True)
class PlanRequest:
    """A training to be estimated. Names of GPUs and links are those of `gaguide.cost.GPUS` and `LINKS`.

    gpus: on each node, one rank each. cards: network cards of a node. micro_batch: None takes a rank's whole
    share of the global batch. guided_heads: in each layer. tokens: budget of the whole training. Buckets are
    elements, as in the DeepSpeed JSON.
    """

    model: ModelShape
    gpus: int = 1
    nodes: int = 1
    gpu: str = "a100-80"
    link: str = "ib-hdr"
    cards: int = 1
    block_length: int = 1024
    global_batch: int = 512
    micro_batch: int | None = None
    zero_stage: int = 2
    precision: Precision = "bf16"
    checkpointing: bool = False
    offload_optimizer: Offload = "none"
    offload_parameters: Offload = "none"
    guided_heads: int = 0
    tokens: int | None = None
    overlap: bool | None = None
    bucket: int = 50_000_000
    gather: int = 50_000_000
    kept_parameters: int = 500_000_000
    sub_group: int = 100_000_000

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.gpus * self.nodes

    @property
    def accumulation(self) -> int:
        """Forward passes of a rank in a step; valid after `check`."""
        return plan_batch(self.global_batch, self.micro_batch, self.ranks).accumulation

    @property
    def setup(self) -> MemorySetup:
        """The request as `gaguide.model.estimate_memory` takes it; valid after `check`."""
        batch = plan_batch(self.global_batch, self.micro_batch, self.ranks)
        return MemorySetup(
            micro_batch=batch.micro_batch,
            block_length=self.block_length,
            zero_stage=self.zero_stage,
            ranks=self.ranks,
            precision=self.precision,
            accumulation=batch.accumulation,
            checkpointing=self.checkpointing,
            guided_heads=self.guided_heads,
            guided_layers=self.model.layers if self.guided_heads else 0,
            row_block=rows_of_block(self.block_length),
            offload_optimizer=self.offload_optimizer,
            offload_parameters=self.offload_parameters,
            bucket=self.bucket,
            gather=self.gather,
            kept_parameters=self.kept_parameters,
            sub_group=self.sub_group,
            overlap=self.zero_stage == 3 if self.overlap is None else self.overlap,
        )


def check(request: PlanRequest) -> None:
    """Raise a `UserError` with every fault of the request."""
    faults = _counts(request) + _names(request) + _shape(request) + _precision(request) + _offload(request)
    if not faults:
        try:
            batch = plan_batch(request.global_batch, request.micro_batch, request.ranks)
        except UserError as error:
            faults += error.faults
        else:
            if request.zero_stage == 1 and request.precision != "fp32" and batch.accumulation > 1:
                remedy = "use stage 2, or a micro batch that needs no accumulation"
                problem = f"at stage 1 DeepSpeed would add up micro batches in {request.precision}"
                faults.append(Fault("micro batch", problem, remedy, batch.micro_batch))
    if faults:
        raise UserError(faults)


def with_run(request: PlanRequest, run: RunConfig) -> PlanRequest:
    """The request with what a run's YAML says: batch, block length, checkpointing, guided heads."""
    heads = len(EXPERIMENTS.get(run.guidance.experiment, ()))
    if run.guidance.plan:
        heads = max((len(entry.heads) for entry in run.guidance.plan), default=0)
    return replace(
        request,
        block_length=run.data.block_length,
        global_batch=run.train.global_batch,
        micro_batch=run.train.micro_batch if run.train.micro_batch != "auto" else None,
        checkpointing=run.train.gradient_checkpointing,
        guided_heads=heads,
    )


def _counts(request: PlanRequest) -> list[Fault]:
    least = {"gpus": 1, "nodes": 1, "cards": 1, "block_length": 2, "global_batch": 1, "guided_heads": 0}
    faults = [
        Fault(_option(name), f"is less than {bound}", f"give {bound} or more", value)
        for name, bound in least.items()
        if (value := getattr(request, name)) < bound
    ]
    for name in ("micro_batch", "tokens"):
        value = getattr(request, name)
        if value is not None and value < 1:
            faults.append(Fault(_option(name), "is less than 1", "give 1 or more", value))
    return faults


def _names(request: PlanRequest) -> list[Fault]:
    faults = []
    if request.gpu not in GPUS:
        faults.append(Fault("--gpu", "no such accelerator", "known: " + ", ".join(GPUS), request.gpu))
    if request.link not in LINKS:
        faults.append(Fault("--link", "no such network", "known: " + ", ".join(LINKS), request.link))
    if request.zero_stage not in range(4):
        faults.append(Fault("--stage", "is no ZeRO stage", "give 0, 1, 2 or 3", request.zero_stage))
    return faults


def _shape(request: PlanRequest) -> list[Fault]:
    faults = []
    positions = request.model.positions
    if positions and request.block_length > positions:
        problem = f"the model takes sequences up to {positions} tokens"
        faults.append(Fault("--block-length", problem, f"give {positions} or less", request.block_length))
    if request.guided_heads > request.model.heads:
        problem = f"a layer has {request.model.heads} heads"
        faults.append(Fault("--guided-heads", problem, "give fewer", request.guided_heads))
    return faults


def _precision(request: PlanRequest) -> list[Fault]:
    faults, precision = [], request.precision
    gpu = GPUS.get(request.gpu)
    if gpu is not None and precision in ("bf16", "fp16") and not getattr(gpu, precision):
        other = "fp16" if precision == "bf16" else "bf16"
        problem = f"{request.gpu} does not compute in {precision}"
        faults.append(Fault("--precision", problem, f"give {other} or fp32", precision))
    if precision == "autocast" and request.zero_stage > 0:
        faults.append(
            Fault("--precision", "autocast is for stage 0", "give bf16, fp16 or fp32", request.zero_stage)
        )
    if precision in ("bf16", "fp16") and request.zero_stage == 0:
        problem = "stage 0 keeps no fp32 weights that could be exported"
        faults.append(Fault("--stage", problem, f"use stage 1 or higher with {precision}", 0))
    return faults


def _offload(request: PlanRequest) -> list[Fault]:
    faults = []
    if request.offload_optimizer != "none" and request.zero_stage < 1:
        remedy = "use stage 1 or higher"
        faults.append(Fault("--offload-optimizer", "needs ZeRO", remedy, request.offload_optimizer))
    elif request.offload_optimizer == "nvme" and request.zero_stage < 3:
        faults.append(Fault("--offload-optimizer", "nvme needs stage 3", "use stage 3, or cpu", "nvme"))
    if request.offload_parameters == "nvme" and request.ranks > 1:
        problem = f"DeepSpeed 0.19 fails on it with {request.ranks} ranks"
        faults.append(Fault("--offload-parameters", problem, "use cpu", "nvme"))
    if request.offload_parameters != "none" and request.zero_stage < 3:
        faults.append(
            Fault("--offload-parameters", "needs stage 3", "use stage 3", request.offload_parameters)
        )
    return faults


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
