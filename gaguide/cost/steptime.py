"""Time of an optimizer step by a roofline model whose constants are in hardware.py.

compute      matrix products at a share of the GPU's peak: bound by arithmetic
elementwise  everything else at MEMORY_SHARE of the memory bandwidth: bound by memory
waiting      the GPU waits for the host where the host launches operations more slowly than the GPU runs them
wire         each ring collective: the bytes a rank sends at LINK_SHARE of the slowest link on the ring, plus
             one latency per hop; compute hides at most OVERLAP_SHARE of the collectives that overlap
update       AdamW's reads and writes of the rank's partition; offloaded, over PCIe, host memory or NVMe
"""

from __future__ import annotations

from dataclasses import dataclass

from gaguide.cost import hardware
from gaguide.cost.flops import TokenFlops, flops_per_token
from gaguide.cost.hardware import GPUS, LINKS
from gaguide.cost.memory import WEIGHT_BYTES, Memory, activation_bytes_per_layer, estimate_memory
from gaguide.cost.request import CostRequest
from gaguide.cost.wire import Collective, collectives

# Passes over saved activations: forward writes and reads them; backward reads them, writes and reads
# gradients.
_ACTIVATION_PASSES = 5
# Passes over fp32 logits: logits, log-probabilities and their gradients, each written and read.
_LOGIT_PASSES = 6
# Bytes that AdamW moves per parameter in fp32: weight, gradient and two moments read; weight and moments
# written.
_UPDATE_BYTES = 28


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step, by cause."""

    compute: float
    """Matrix products."""
    elementwise: float
    """Operations bound by memory bandwidth."""
    waiting: float
    """The GPU waits for the host."""
    wire: float
    """All communication."""
    exposed: float
    """Communication that compute does not hide."""
    update: float
    """The optimizer step."""

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.compute + self.elementwise + self.waiting + self.exposed + self.update

    @property
    def efficiency(self) -> float:
        """Scaling efficiency: the share of the step that does not wait for communication."""
        return 1 - self.exposed / self.total


def step_time(request: CostRequest) -> StepTime:
    """Time of one optimizer step. The request must have passed `check`."""
    setup, gpu = request.setup, GPUS[request.gpu]
    tokens = setup.tokens * setup.accumulation
    flops = token_flops(request)
    compute = tokens * flops.training / (gpu.peak(request.precision) * gpu.matrix_share)
    touched = _ACTIVATION_PASSES * request.model.layers * activation_bytes_per_layer(request.model, setup)
    touched += _LOGIT_PASSES * 4 * setup.tokens * request.model.vocab
    if request.precision == "autocast":  # weights to 16 bits, their gradients back to 32, in every pass
        touched += 12 * request.model.parameters
    elementwise = touched * setup.accumulation / (gpu.bandwidth * hardware.MEMORY_SHARE)
    host = hardware.LAUNCH_SECONDS * (4 / 3 if request.checkpointing else 1)
    host += hardware.HOOK_SECONDS[request.zero_stage]
    waiting = max(0.0, host * request.model.layers * setup.accumulation - compute - elementwise)
    sending = [(one, _seconds(one, request)) for one in collectives(request.model, setup)]
    hidden = sum(seconds for one, seconds in sending if one.hidden)
    exposed_only = sum(seconds for one, seconds in sending if not one.hidden)
    computing = compute + elementwise + waiting
    exposed = exposed_only + max((1 - hardware.OVERLAP_SHARE) * hidden, hidden - computing)
    update = _update(request, estimate_memory(request.model, setup))
    times = (compute, elementwise, waiting, hidden + exposed_only, exposed, update)
    return StepTime(*(seconds / request.pace for seconds in times))


def token_flops(request: CostRequest) -> TokenFlops:
    """Operations per token. The request must have passed `check`."""
    return flops_per_token(
        request.model,
        request.block_length,
        checkpointing=request.checkpointing,
        guided_heads=request.guided_heads * request.model.layers,
        trained=request.trained,
        added=request.added,
    )


def _seconds(collective: Collective, request: CostRequest) -> float:
    """Time of a ring collective: its slowest link, plus one latency per hop of the ring and call."""
    gpu, link = GPUS[request.gpu], LINKS[request.link]
    bandwidth, passes = gpu.link, 2 if collective.operation == "all_reduce" else 1
    hops = (request.ranks - request.nodes) * hardware.INSIDE_LATENCY
    if request.nodes > 1:
        # One ring per adapter; together they carry the bytes that one rank sends.
        bandwidth = min(bandwidth, link.bandwidth * request.cards)
        hops += request.nodes * link.latency
    sending = collective.sent(request.ranks) / (bandwidth * hardware.LINK_SHARE)
    return sending + collective.calls * passes * hops


def _update(request: CostRequest, memory: Memory) -> float:
    trained, gpu = request.model.parameters if request.trained is None else request.trained, GPUS[request.gpu]
    part = trained / request.ranks if request.zero_stage else trained
    if request.offload_optimizer == "none":
        return _UPDATE_BYTES * part / (gpu.bandwidth * hardware.MEMORY_SHARE)
    width = WEIGHT_BYTES[request.precision]
    moved = (4 + width) * part / (gpu.host * hardware.LINK_SHARE)
    seconds = moved + _UPDATE_BYTES * part * request.gpus / hardware.HOST_BANDWIDTH
    return seconds + 2 * memory.disk * request.gpus / hardware.DISK_BANDWIDTH
