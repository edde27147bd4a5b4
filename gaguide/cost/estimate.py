"""The plan of a training: memory, time, bytes on the wire and GPU-hours. `estimate` is its one entry."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from gaguide.cost import hardware
from gaguide.cost.hardware import GPUS
from gaguide.cost.memory import Memory, estimate_memory
from gaguide.cost.request import PlanRequest, check
from gaguide.cost.steptime import StepTime, operations, step_time
from gaguide.cost.wire import Collective, collectives


@dataclass(frozen=True)
class Plan:
    """What a request would take. A model, not a measurement: docs/scaling.md states it and what was checked.

    memory: tensor bytes of a rank; needed: with the allowance for context and fragmentation, against
    `capacity`. step: seconds by cause. steps, hours, gpu_hours: of the token budget, None without one.
    """

    request: PlanRequest
    memory: Memory
    needed: float
    capacity: float
    wire: tuple[Collective, ...]
    step: StepTime
    tokens_per_step: int
    utilisation: float

    @property
    def fits(self) -> bool:
        """Whether a rank's GPU holds it."""
        return self.needed <= self.capacity

    @property
    def other_activations(self) -> tuple[str, int]:
        """Bytes of activations under the other choice of checkpointing: ("with" or "without", bytes)."""
        setup = self.request.setup
        other = estimate_memory(self.request.model, replace(setup, checkpointing=not setup.checkpointing))
        return "with" if other.recomputed else "without", other.activations + other.recomputed

    @property
    def sent_bytes(self) -> float:
        """Bytes that one rank sends in a step."""
        return sum(one.sent(self.request.ranks) for one in self.wire)

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks together."""
        return self.tokens_per_step / self.step.total

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the token budget."""
        return None if self.request.tokens is None else -(-self.request.tokens // self.tokens_per_step)

    @property
    def hours(self) -> float | None:
        """Hours of the token budget, without validation, checkpoints and start."""
        return None if self.steps is None else self.steps * self.step.total / 3600

    @property
    def gpu_hours(self) -> float | None:
        """Hours times ranks."""
        return None if self.hours is None else self.hours * self.request.ranks

    def as_record(self) -> dict[str, Any]:
        """Plain JSON values."""
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


def estimate(request: PlanRequest) -> Plan:
    """The plan of `request`; a `UserError` with every fault where it makes no sense. Takes milliseconds."""
    check(request)
    gpu = GPUS[request.gpu]
    memory, step = estimate_memory(request.model, request.setup), step_time(request)
    tokens = request.global_batch * request.block_length
    peak = gpu.peak(request.precision) * request.ranks
    return Plan(
        request=request,
        memory=memory,
        needed=memory.peak * (1 + hardware.FRAGMENTATION) + hardware.RESERVED_BYTES,
        capacity=gpu.memory,
        wire=collectives(request.model, request.setup),
        step=step,
        tokens_per_step=tokens,
        utilisation=tokens * operations(request).model / (step.total * peak),
    )
