"""Bytes that one rank needs to train: model states by ZeRO stage, activations, logits, guidance, buffers.

Model states follow Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3 and figure 1) as DeepSpeed
0.19 keeps them: fp32 master weights and AdamW's two moments, split from stage 1 on; gradients from stage 2;
weights at stage 3. Activations follow Korthikanti et al. 2022 (arXiv:2205.05198, section 4) in method; the
counts are what transformers' layers save for backward, with GELU as one operation (fast.py).

These are tensor bytes. A GPU's context, kernels' workspaces and the allocator's fragments come on top
(`gaguide.cost` adds an allowance for them).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from gaguide.model.shape import ModelShape

Precision = Literal["fp32", "bf16", "fp16", "autocast"]
"""Of weights and products; `autocast` keeps weights in fp32 and multiplies in 16 bits."""
Offload = Literal["none", "cpu", "nvme"]

WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "autocast": 4}
_PRODUCT_BYTES: dict[Precision, int] = WEIGHT_BYTES | {"autocast": 2}
_FULL = 4  # bytes of what is always fp32: master weights, moments, accumulated gradients, loss

# How many tensors as wide as the MLP its activation saves, its output included; a gated MLP keeps gate, up,
# the activated gate and their product.
_MLP_KEPT = {"silu": 4, "swish": 4, "relu": 1}
_MLP_KEPT_OTHER = 2
_RMS_NORM = frozenset({"llama", "mistral", "qwen2", "qwen3"})


@dataclass(frozen=True)
class MemorySetup:
    """How a model is trained, as far as memory goes.

    micro_batch: sequences per rank in a forward pass. block_length: tokens of each. accumulation: forward
    passes in a step. guided_heads: in each guided layer; guided_layers: how many those are. row_block: query
    rows that guidance makes at once. fused_attention: False where SDPA writes the attention matrix (on a CPU
    with dropout). bucket, gather: elements of ZeRO's reduce bucket and of stage 3's prefetch bucket.
    kept_parameters: most that stage 3 keeps gathered from one use to the next. sub_group: what it updates at
    once (`sub_group_size`). overlap: a second bucket.
    """

    micro_batch: int
    block_length: int
    zero_stage: int = 2
    ranks: int = 1
    precision: Precision = "bf16"
    accumulation: int = 1
    checkpointing: bool = False
    guided_heads: int = 0
    guided_layers: int = 0
    row_block: int = 128
    fused_attention: bool = True
    offload_optimizer: Offload = "none"
    offload_parameters: Offload = "none"
    bucket: int = 50_000_000
    gather: int = 50_000_000
    kept_parameters: int = 500_000_000
    sub_group: int = 100_000_000
    overlap: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a micro batch."""
        return self.micro_batch * self.block_length


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by part; not all are needed at once (`phases`).

    weights, master_weights, optimizer: there always. gradients: complete. standing: what of gradients and
    buffers is there during the next forward pass already. buffers: ZeRO's reduce bucket. gathered: weights
    that stage 3 has collected, or autocast's copies. activations: saved for backward. recomputed: of one
    block under checkpointing. logits: fp32 logits and their gradients. guidance: saved and transient.
    update: what the optimizer's step needs beside the gradients. host, disk: bytes there for this rank, by
    offload.
    """

    weights: int
    master_weights: int
    optimizer: int
    gradients: int
    standing: int
    buffers: int
    gathered: int
    activations: int
    recomputed: int
    logits: int
    guidance: int
    update: int
    host: int = 0
    disk: int = 0

    @property
    def states(self) -> int:
        """What lasts from step to step."""
        return self.weights + self.master_weights + self.optimizer

    @property
    def phases(self) -> dict[str, int]:
        """Bytes at the three moments of a step that can be its peak.

        loss: the backward of the loss, with all activations saved and few gradients. backward: its end, with
        all gradients and no activations (between them both change by the layer, so no sum is higher).
        """
        passing = self.states + self.gathered
        saved = self.activations + max(self.logits, self.recomputed) + self.guidance
        return {
            "loss": passing + self.standing + saved,
            "backward": passing + self.gradients + self.buffers + self.recomputed,
            "update": self.states + self.gradients + self.update,
        }

    @property
    def peak(self) -> int:
        """Most bytes at one moment."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The moment of the peak: loss, backward or update."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    def parts(self) -> dict[str, int]:
        """Every part by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def activation_bytes_per_layer(shape: ModelShape, setup: MemorySetup) -> int:
    """What one block saves for backward without checkpointing.

    GPT-2 saves 8 tensors of its width (both norms' inputs and outputs, q, k, v, attention's output) and 2 of
    its MLP's width: 16 × width × bytes a token, as in Korthikanti et al. without dropout's masks.
    """
    width_bytes = _PRODUCT_BYTES[setup.precision]
    query, key = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    elements = 4 * shape.width + 2 * query + 2 * key
    elements += _MLP_KEPT.get(shape.activation, _MLP_KEPT_OTHER) * shape.mlp_width
    elements += 2 * shape.width if shape.kind == "gpt_neox" else 0  # fused q, k, v outlive their rotation
    per_token = elements * width_bytes
    if (
        shape.kind in _RMS_NORM
    ):  # computed in fp32 in single operations: input in fp32 and scaled one are kept
        per_token += 2 * shape.width * 4
    else:
        per_token += 4 * width_bytes  # mean and deviation of two layer norms
    if setup.precision == "autocast":  # norms' inputs stay in fp32
        per_token += 4 * shape.width
    if setup.fused_attention:
        per_token += 4 * shape.heads  # log-sum-exp
    else:  # scores after softmax and after dropout, and dropout's mask, in fp32; scaled q, k
        per_token += 12 * shape.heads * setup.block_length + (8 if width_bytes == 2 else 6) * shape.width
    if shape.dropout:
        per_token += 2 * shape.width  # two masks of one byte
    return setup.tokens * per_token


def estimate_memory(shape: ModelShape, setup: MemorySetup) -> Memory:
    """Bytes that one rank needs, by part."""
    layer = activation_bytes_per_layer(shape, setup)
    entry = setup.tokens * shape.width * WEIGHT_BYTES[setup.precision]
    ends = 2 * entry + (
        setup.tokens * shape.width if shape.dropout else 0
    )  # the last norm's input and output
    guided = guidance_saves(shape, setup)
    if setup.checkpointing:
        guided = -(-guided // shape.layers)  # of one layer at a time
    return Memory(
        **_states(shape, setup),
        activations=shape.layers * (entry if setup.checkpointing else layer) + ends,
        recomputed=layer if setup.checkpointing else 0,
        # Cross-entropy's backward: log-probabilities, their gradient and the logits' gradient, all fp32.
        logits=3 * _FULL * setup.tokens * shape.vocab,
        guidance=guided + _guidance_works_in(shape, setup),
    )


def _states(shape: ModelShape, setup: MemorySetup) -> dict[str, int]:
    """Bytes of everything that depends on parameters and ranks only, as DeepSpeed's optimizers hold it."""
    P, stage, width_bytes = shape.parameters, setup.zero_stage, WEIGHT_BYTES[setup.precision]
    part = -(-P // setup.ranks) if stage else P
    full = width_bytes == _FULL
    # ZeRO copies even fp32 weights (stage 3 means not to, but compares a device with its name).
    master = _FULL * part if stage or not full else 0
    # Micro batches are added up in fp32; beside a disk a single one is kept as it is (engine/config.py).
    beside_disk = setup.offload_optimizer == "nvme" and setup.accumulation == 1
    sums = width_bytes if beside_disk else _FULL
    gradients = width_bytes * P if stage < 2 else sums * part
    buffers = width_bytes * min(P, setup.bucket) * (2 if setup.overlap and stage < 3 else 1)
    standing = gradients if setup.accumulation > 1 else 0
    if stage == 3:  # allocated once
        standing, gradients = gradients + buffers, gradients + buffers
        buffers = 0
    # One flat copy of the part's gradients; at stage 2 in 16 bits they are flat, and the largest matrix is
    # copied in double precision for its norm.
    update = _FULL * part if stage else 0
    if stage == 2 and not full:
        update = 2 * _FULL * min(part, shape.head_matrix)
    gathered = 0
    if stage == 3 and (setup.ranks > 1 or setup.offload_parameters != "none"):
        # Kept for backward, at use, fetched ahead.
        at_use = max(shape.block_parameters, shape.head_matrix)
        gathered = width_bytes * min(P, setup.kept_parameters + at_use + setup.gather)
    if setup.precision == "autocast":  # the matrices in 16 bits, for forward and backward
        gathered = 2 * (shape.layers * shape.block_matrices + shape.head_matrix)
    states = {
        "weights": width_bytes * (part if stage == 3 else P),
        "master_weights": master,
        "optimizer": 2 * _FULL * part,
        "gradients": gradients,
        "standing": standing,
        "buffers": buffers,
        "gathered": gathered,
        "update": update,
    }
    # Weight, both moments and gradient of a sub group: it is closed by the parameter that passes its size.
    swap = 4 * _FULL * min(part, setup.sub_group + shape.head_matrix)
    return states | _offloaded(states, setup, sums * part, swap if setup.offload_optimizer == "nvme" else 0)


def _offloaded(
    states: dict[str, int], setup: MemorySetup, gradients: int, swap_buffers: int
) -> dict[str, int]:
    """Parts that offload moves, and where to; the host holds gradients and swap buffers, of so many bytes."""
    moved = {"host": 0, "disk": 0}
    if setup.offload_optimizer != "none":
        place = "host" if setup.offload_optimizer == "cpu" else "disk"
        moved[place] += states["master_weights"] + states["optimizer"]
        moved["host"] += gradients + swap_buffers
        moved |= {"master_weights": 0, "optimizer": 0, "update": 0}
        if setup.zero_stage > 1:
            moved |= {
                "gradients": states["gradients"] - gradients,
                "standing": max(0, states["standing"] - gradients),
            }
    if setup.offload_parameters != "none":
        moved["host" if setup.offload_parameters == "cpu" else "disk"] += states["weights"]
        moved["weights"] = 0
    return moved


def guidance_saves(shape: ModelShape, setup: MemorySetup) -> int:
    """Bytes saved for backward over all guided layers, beside those of an unguided layer.

    The guided heads' output in fp32 and the other heads' output, while the joined output is saved as ever.
    """
    guided = setup.guided_heads * shape.head_width
    rest = shape.heads * shape.head_width - guided
    if not guided:
        return 0
    per_token = _FULL * guided + rest * _PRODUCT_BYTES[setup.precision]
    return setup.tokens * per_token * setup.guided_layers


def _guidance_works_in(shape: ModelShape, setup: MemorySetup) -> int:
    """Bytes of one layer that come and go: q, k, v and their gradients in fp32, three blocks of rows of H."""
    blocks = 3 * _FULL * setup.micro_batch * setup.guided_heads * setup.row_block * setup.block_length
    return setup.tokens * setup.guided_heads * shape.head_width * 6 * _FULL + blocks
