"""Time of an optimizer step by a stated model; its constants are in hardware.py.

compute     matrix products at MATRIX_SHARE of the GPU's peak, plus elementwise work at MEMORY_SHARE of its
            memory bandwidth (roofline: products are bound by arithmetic, the rest by memory)
waiting     what the GPU waits for a host that starts operations more slowly than the GPU does them
wire        each ring collective: bytes a rank sends over the slowest link it crosses at LINK_SHARE, plus one
            latency a hop; of collectives that overlap, compute hides OVERLAP_SHARE at best
update      AdamW's reading and writing of its rank's part; offloaded: over PCIe, host memory or NVMe instead
"""

from __future__ import annotations

from dataclasses import dataclass

from gaguide.cost import hardware
from gaguide.cost.flops import TokenFlops, flops_per_token
from gaguide.cost.hardware import GPUS, LINKS
from gaguide.cost.memory import WEIGHT_BYTES, Memory, activation_bytes_per_layer, estimate_memory
from gaguide.cost.request import PlanRequest
from gaguide.cost.wire import Collective, collectives

# Passes over saved activations: written and read forward; backward reads them, writes and reads gradients.
_ACTIVATION_PASSES = 5
# Passes over fp32 logits: logits, log-probabilities, their gradients, each written and read.
_LOGIT_PASSES = 6
# Bytes of AdamW's step a parameter, fp32: weight, gradient, two moments read; weight, moments written.
_UPDATE_BYTES = 28


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step by cause.

    waiting: for the host. wire: all communication. exposed: what of it compute cannot hide.
    """

    compute: float
    elementwise: float
    waiting: float
    wire: float
    exposed: float
    update: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.elementwise + self.waiting + self.exposed + self.update

    @property
    def efficiency(self) -> float:
        """Share of the step that does not wait for communication."""
        return 1 - self.exposed / self.total


def step_time(request: PlanRequest) -> StepTime:
    """The step of a checked request."""
    setup, gpu = request.setup, GPUS[request.gpu]
    tokens = setup.tokens * setup.accumulation
    flops = operations(request)
    compute = tokens * flops.training / (gpu.peak(request.precision) * hardware.MATRIX_SHARE)
    touched = _ACTIVATION_PASSES * request.model.layers * activation_bytes_per_layer(request.model, setup)
    touched += _LOGIT_PASSES * 4 * setup.tokens * request.model.vocab
    elementwise = touched * setup.accumulation / (gpu.bandwidth * hardware.MEMORY_SHARE)
    host = hardware.LAUNCH_SECONDS * (4 / 3 if request.checkpointing else 1)
    host += hardware.HOOK_SECONDS if request.zero_stage == 3 else 0
    waiting = max(0.0, host * request.model.layers * setup.accumulation - compute - elementwise)
    times = [(one, _seconds(one, request)) for one in collectives(request.model, setup)]
    hidden = sum(seconds for one, seconds in times if one.hidden)
    open_ = sum(seconds for one, seconds in times if not one.hidden)
    computing = compute + elementwise + waiting
    exposed = open_ + max((1 - hardware.OVERLAP_SHARE) * hidden, hidden - computing)
    update = _update(request, estimate_memory(request.model, setup))
    return StepTime(compute, elementwise, waiting, hidden + open_, exposed, update)


def operations(request: PlanRequest) -> TokenFlops:
    """Operations per token of a checked request."""
    return flops_per_token(
        request.model,
        request.block_length,
        checkpointing=request.checkpointing,
        guided_heads=request.guided_heads * request.model.layers,
    )


def _seconds(collective: Collective, request: PlanRequest) -> float:
    """A ring's time: its slowest link, and for each call as many hops as the ring has."""
    gpu, link = GPUS[request.gpu], LINKS[request.link]
    bandwidth, passes = gpu.link, 2 if collective.operation == "all_reduce" else 1
    hops = (request.ranks - request.nodes) * hardware.INSIDE_LATENCY
    if request.nodes > 1:
        # One ring for each card: together they carry what one rank sends.
        bandwidth = min(bandwidth, link.bandwidth * request.cards)
        hops += request.nodes * link.latency
    sending = collective.sent(request.ranks) / (bandwidth * hardware.LINK_SHARE)
    return sending + collective.calls * passes * hops


def _update(request: PlanRequest, memory: Memory) -> float:
    P, gpu = request.model.parameters, GPUS[request.gpu]
    part = P / request.ranks if request.zero_stage else P
    if request.offload_optimizer == "none":
        return _UPDATE_BYTES * part / (gpu.bandwidth * hardware.MEMORY_SHARE)
    width = WEIGHT_BYTES[request.precision]
    moved = (4 + width) * part / (gpu.host * hardware.LINK_SHARE)
    seconds = moved + _UPDATE_BYTES * part * request.gpus / hardware.HOST_BANDWIDTH
    return seconds + 2 * memory.disk * request.gpus / hardware.DISK_BANDWIDTH
