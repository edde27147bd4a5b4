"""`estimate`: memory, time, bytes on the wire and GPU-hours of a `CostRequest`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from gaguide.cost import hardware
from gaguide.cost.hardware import GPUS
from gaguide.cost.memory import Memory, estimate_memory
from gaguide.cost.request import CostRequest, check
from gaguide.cost.steptime import StepTime, step_time, token_flops
from gaguide.cost.wire import Collective, collectives


@dataclass(frozen=True)
class CostEstimate:
    """Cost of a training according to the model in docs/scaling.md; nothing here is measured."""

    request: CostRequest
    """The training that was estimated."""
    memory: Memory
    """Tensor bytes of one rank, by part."""
    needed: float
    """Bytes of GPU memory: the peak of `memory`, with allowances for context and fragmentation."""
    capacity: float
    """Bytes of memory of the GPU."""
    wire: tuple[Collective, ...]
    """Collectives of one step."""
    step: StepTime
    """Seconds of one step, by cause."""
    tokens_per_step: int
    """Tokens of one step, over all ranks."""
    utilisation: float
    """Model FLOPs utilisation, between 0 and 1."""

    @property
    def fits(self) -> bool:
        """Whether the GPU has the memory that a rank needs."""
        return self.needed <= self.capacity

    @property
    def other_activations(self) -> tuple[str, int]:
        """Activation memory under the other choice of checkpointing: ("with" or "without", bytes)."""
        setup = self.request.setup
        other = estimate_memory(self.request.model, replace(setup, checkpointing=not setup.checkpointing))
        return "with" if other.recomputed else "without", other.activations + other.recomputed

    @property
    def sent_bytes(self) -> float:
        """Bytes that one rank sends in a step."""
        return sum(one.sent(self.request.ranks) for one in self.wire)

    @property
    def tokens_per_second(self) -> float:
        """Throughput of all ranks together."""
        return self.tokens_per_step / self.step.total

    @property
    def steps(self) -> int | None:
        """Optimizer steps for the token budget; None without a budget."""
        return None if self.request.tokens is None else -(-self.request.tokens // self.tokens_per_step)

    @property
    def hours(self) -> float | None:
        """Hours for the token budget, without startup, validation and checkpoints; None without a budget."""
        return None if self.steps is None else self.steps * self.step.total / 3600

    @property
    def gpu_hours(self) -> float | None:
        """Hours times ranks; None without a budget."""
        return None if self.hours is None else self.hours * self.request.ranks

    def as_record(self) -> dict[str, Any]:
        """The estimate as JSON values, the format of `gaguide plan --json`."""
        request = asdict(self.request) | {
            "ranks": self.request.ranks,
            "accumulation": self.request.accumulation,
        }
        return {
            "kind": "model, not measurement",
            "request": request | {"micro_batch": self.request.setup.micro_batch},
            "memory": self.memory.parts() | {"peak": self.memory.peak, "peak_phase": self.memory.peak_phase},
            "activations_" + self.other_activations[0] + "_checkpointing": self.other_activations[1],
            "needed_bytes": round(self.needed),
            "capacity_bytes": round(self.capacity),
            "fits": self.fits,
            "wire": [asdict(one) | {"sent": round(one.sent(self.request.ranks))} for one in self.wire],
            "sent_bytes": round(self.sent_bytes),
            "step_seconds": asdict(self.step) | {"total": self.step.total},
            "scaling_efficiency": self.step.efficiency,
            "model_flops_utilisation": self.utilisation,
            "tokens_per_step": self.tokens_per_step,
            "tokens_per_second": self.tokens_per_second,
            "steps": self.steps,
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
        }


def estimate(request: CostRequest) -> CostEstimate:
    """The cost of `request`, in milliseconds. Raises a `UserError` with every fault of the request."""
    check(request)
    gpu = GPUS[request.gpu]
    memory, step = estimate_memory(request.model, request.setup), step_time(request)
    tokens = request.global_batch * request.block_length
    peak = gpu.peak(request.precision) * request.ranks
    return CostEstimate(
        request=request,
        memory=memory,
        needed=memory.peak * (1 + hardware.FRAGMENTATION) + hardware.RESERVED_BYTES,
        capacity=gpu.memory,
        wire=collectives(request.model, request.setup),
        step=step,
        tokens_per_step=tokens,
        utilisation=tokens * token_flops(request).model / (step.total * peak),
    )
