"""Bytes that one rank needs to train: model states by ZeRO stage, activations, logits, guidance, buffers.

Model states follow Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3 and figure 1) as DeepSpeed
0.19 keeps them: fp32 master weights and AdamW's two moments are partitioned from stage 1 on, gradients from
stage 2 on, weights at stage 3. Activations follow the method of Korthikanti et al. 2022 (arXiv:2205.05198,
section 4); they count what transformers' layers save for backward, with GELU as one operation
(model/fast.py).

Parameters that are not trained (`train.freeze`, `trainable`, `lora`) have weights, but no gradients, master
weights and moments.
Activations are counted as for full training: that is an upper bound, since a frozen matrix does not save its
input.

These are tensor bytes. The GPU's context, kernel workspaces and allocator fragmentation come on top:
`gaguide.cost.estimate` adds an allowance for them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from gaguide.model.head_runs import SMALL
from gaguide.model.quantize import BYTES_PER_WEIGHT
from gaguide.model.shape import ModelShape

Precision = Literal["fp32", "bf16", "fp16", "autocast"]
"""Precision of weights and matrix products; `autocast` keeps fp32 weights and multiplies in 16 bits."""
Offload = Literal["none", "cpu", "nvme"]
"""Where offloaded state is kept."""

WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "autocast": 4}
_PRODUCT_BYTES: dict[Precision, int] = WEIGHT_BYTES | {"autocast": 2}
_FP32 = 4  # bytes; master weights, moments, accumulated gradients and the loss are always in fp32

# Tensors of the MLP's width saved for backward, by activation function and including its output. A gated MLP
# saves the gate, the up projection, the activated gate and their product.
_MLP_SAVED = {"silu": 4, "swish": 4, "relu": 1}
_MLP_SAVED_OTHER = 2
_RMS_NORM = frozenset({"llama", "mistral", "qwen2"})
_NOT_ROTATED = frozenset({"gpt2", "opt"})
"""Models that add positions to embeddings; rotating queries and keys makes autocast's fp32 again."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of a training that decide its memory and time. Bucket sizes are in elements, as in a DeepSpeed
    JSON."""

    block_length: int = 1024
    """Tokens per sequence."""
    zero_stage: int = 2
    """ZeRO stage, 0 to 3."""
    precision: Precision = "bf16"
    """Precision of weights and matrix products."""
    checkpointing: bool = False
    """Whether each block's activations are recomputed in backward."""
    guided_heads: int = 0
    """Guided heads in each guided layer."""
    tapped: bool = True
    """Whether guidance computes its loss in addition to the model's own attention (the default on GPUs)."""
    offload_optimizer: Offload = "none"
    """Where optimizer state and master weights are kept."""
    offload_parameters: Offload = "none"
    """Where weights are kept at stage 3."""
    bucket: int = 50_000_000
    """Size of ZeRO's reduce bucket."""
    gather: int = 50_000_000
    """Size of stage 3's prefetch bucket."""
    kept_parameters: int = 500_000_000
    """Most elements that stage 3 keeps gathered from one use to the next."""
    sub_group: int = 100_000_000
    """Elements that stage 3 updates at a time (`sub_group_size`)."""
    trained: int | None = None
    """Parameters that are trained; None where all of the model are."""
    added: int = 0
    """Parameters of adapters, in addition to the model's own."""
    packed: int = 0
    """Weights of the model that are kept in 4 bits."""


@dataclass(frozen=True)
class MemorySetup(TrainingSettings):
    """How a model is trained, as far as memory is concerned."""

    micro_batch: int
    """Sequences per rank in a forward pass."""
    ranks: int = 1
    """Number of ranks."""
    accumulation: int = 1
    """Forward passes per optimizer step."""
    guided_layers: int = 0
    """Number of guided layers."""
    row_block: int = 128
    """Query rows of the attention matrix that guidance computes at a time."""
    fused_attention: bool = True
    """False where SDPA materialises the attention matrix, as it does on a CPU with dropout."""
    overlap: bool = False
    """Whether reductions overlap with backward, which takes a second bucket below stage 3."""

    @property
    def tokens(self) -> int:
        """Tokens per micro batch of one rank."""
        return self.micro_batch * self.block_length


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by part. Not all parts exist at the same time: see `phases`."""

    weights: int
    """Weights in the precision of training."""
    master_weights: int
    """fp32 master weights."""
    optimizer: int
    """AdamW's two moments."""
    gradients: int
    """Gradients at the end of backward."""
    standing: int
    """Gradients and buffers that are still allocated during the next forward pass."""
    buffers: int
    """ZeRO's reduce buckets, where they are not counted in `gradients`."""
    gathered: int
    """Weights gathered by stage 3, or autocast's 16-bit copies."""
    activations: int
    """Activations saved for backward."""
    recomputed: int
    """Activations of the one block that checkpointing recomputes at a time."""
    logits: int
    """fp32 logits and their gradients."""
    guidance: int
    """Tensors that guidance saves for backward, and its temporary memory."""
    update: int
    """Memory that the optimizer step needs in addition to the gradients."""
    host: int = 0
    """Host memory for this rank, by offload."""
    disk: int = 0
    """NVMe space for this rank, by offload."""

    @property
    def states(self) -> int:
        """Bytes that persist from step to step on the GPU."""
        return self.weights + self.master_weights + self.optimizer

    @property
    def phases(self) -> dict[str, int]:
        """Bytes at the three moments of a step that can be its peak.

        loss: the start of backward, with all activations and few gradients. backward: its end, with all
        gradients and no activations; in between both change layer by layer, so no sum is higher. update: the
        optimizer step.
        """
        resident = self.states + self.gathered
        saved = self.activations + max(self.logits, self.recomputed) + self.guidance
        return {
            "loss": resident + self.standing + saved,
            "backward": resident + self.gradients + self.buffers + self.recomputed,
            "update": self.states + self.gradients + self.update,
        }

    @property
    def peak(self) -> int:
        """Most bytes allocated at one time."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase of the peak: loss, backward or update."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    def parts(self) -> dict[str, int]:
        """Bytes by the name of the part."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def activation_bytes_per_layer(shape: ModelShape, setup: MemorySetup) -> int:
    """Bytes that one block saves for backward without checkpointing.

    GPT-2 saves 8 tensors of the model's width (inputs and outputs of both norms, q, k, v, the attention
    output) and 2 of the MLP's width: 16 × width × bytes per token, as in Korthikanti et al. without dropout
    masks.
    """
    width_bytes = _PRODUCT_BYTES[setup.precision]
    if shape.saved is None:
        per_token = _computed(shape, setup.precision)
    else:
        by_precision = {"fp32": shape.saved.fp32, "autocast": shape.saved.autocast}
        per_token = by_precision.get(setup.precision, shape.saved.half) - 4 * shape.heads
    if setup.fused_attention:
        per_token += 4 * shape.heads  # log-sum-exp
    else:
        # Probabilities before and after dropout and its mask, in fp32; scaled q and k.
        per_token += 12 * shape.heads * setup.block_length + (8 if width_bytes == 2 else 6) * shape.width
    if shape.dropout:
        per_token += 2 * shape.width  # two dropout masks of one byte
    return setup.tokens * per_token


def _computed(shape: ModelShape, precision: Precision) -> int:
    """Bytes per token of one block, without attention's row statistics."""
    width_bytes = _PRODUCT_BYTES[precision]
    query, key = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    elements = 4 * shape.width + 2 * query + 2 * key
    elements += _MLP_SAVED.get(shape.activation, _MLP_SAVED_OTHER) * shape.mlp_width
    if shape.kind == "gpt_neox":  # the fused q, k, v stay alive after the rotary embedding
        elements += 2 * shape.width
    per_token = elements * width_bytes
    if shape.kind in _RMS_NORM:
        # RMSNorm is several operations in fp32, which save its input in fp32 and the normalised one.
        per_token += 2 * shape.width * 4
    else:
        per_token += 4 * width_bytes  # mean and standard deviation of two layer norms
    if precision == "autocast":  # the norms' inputs stay in fp32
        per_token += 4 * shape.width
        # q, k and v each keep a 16-bit copy of the norm's output; so do gate and up.
        if shape.kind in _RMS_NORM:
            per_token += 3 * 2 * shape.width
    return per_token


def estimate_memory(shape: ModelShape, setup: MemorySetup) -> Memory:
    """Bytes that one rank needs to train a model of this shape, by part."""
    layer = activation_bytes_per_layer(shape, setup)
    entry = setup.tokens * shape.width * WEIGHT_BYTES[setup.precision]
    # Input and output of the final norm, and the embedding's dropout mask.
    ends = 2 * entry + (setup.tokens * shape.width if shape.dropout else 0)
    guided = guidance_saves(shape, setup)
    if setup.checkpointing:
        guided = -(-guided // shape.layers)  # one layer at a time
    return Memory(
        **_states(shape, setup),
        activations=shape.layers * (entry if setup.checkpointing else layer) + ends,
        recomputed=layer if setup.checkpointing else 0,
        # Backward of cross-entropy: log-probabilities, their gradient and the logits' gradient, all in fp32.
        logits=3 * _FP32 * setup.tokens * shape.vocab,
        guidance=guided + _guidance_workspace(shape, setup),
    )


def _states(shape: ModelShape, setup: MemorySetup) -> dict[str, int]:
    """Bytes of the parts that do not depend on the batch, as DeepSpeed's optimizers allocate them."""
    P, stage, width_bytes = shape.parameters + setup.added, setup.zero_stage, WEIGHT_BYTES[setup.precision]
    trained = P if setup.trained is None else setup.trained
    part = -(-trained // setup.ranks) if stage else trained
    full = width_bytes == _FP32
    # ZeRO copies even fp32 weights. Stage 3 tries to avoid it, but compares a device with a string.
    master = _FP32 * part if stage or not full else 0
    # Micro batches accumulate in fp32; with NVMe offload a single one keeps its dtype (engine/config.py).
    not_accumulated = setup.offload_optimizer == "nvme" and setup.accumulation == 1
    sums = width_bytes if not_accumulated else _FP32
    gradients = width_bytes * trained if stage < 2 else sums * part
    buffers = width_bytes * min(trained, setup.bucket) * (2 if setup.overlap and stage < 3 else 1)
    standing = gradients if setup.accumulation > 1 else 0
    if stage == 3:  # allocated once and kept
        standing, gradients = gradients + buffers, gradients + buffers
        buffers = 0
    # One flat copy of the partition's gradients. At stage 2 in 16 bits they are flat already, and only the
    # largest matrix is copied, in fp64, for its norm.
    update = _FP32 * part if stage else 0
    if stage == 2 and not full:
        update = 2 * _FP32 * min(part, shape.head_matrix)
    gathered = 0
    if stage == 3 and (setup.ranks > 1 or setup.offload_parameters != "none"):
        # Kept for backward, in use, prefetched.
        at_use = max(shape.block_parameters, shape.head_matrix)
        gathered = width_bytes * min(P, setup.kept_parameters + at_use + setup.gather)
    if setup.precision == "autocast":  # 16-bit copies of the matrices, for forward and for backward
        gathered = 2 * (shape.matrices + shape.head_matrix)
    states = {
        "weights": width_bytes * (-(-P // setup.ranks) if stage == 3 else P - setup.packed)
        + int(BYTES_PER_WEIGHT * setup.packed),
        "master_weights": master,
        "optimizer": 2 * _FP32 * part,
        "gradients": gradients,
        "standing": standing,
        "buffers": buffers,
        "gathered": gathered,
        "update": update,
    }
    # Weight, both moments and gradient of a sub group, which may exceed its size by one parameter.
    swap = 4 * _FP32 * min(part, setup.sub_group + shape.head_matrix)
    return states | _offloaded(states, setup, sums * part, swap if setup.offload_optimizer == "nvme" else 0)


def _offloaded(
    states: dict[str, int], setup: MemorySetup, gradients: int, swap_buffers: int
) -> dict[str, int]:
    """The parts that offload changes. `gradients` and `swap_buffers`: bytes of those on the host."""
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
    """Bytes that all guided layers save for backward in addition to those of unguided layers.

    The guided heads' output in fp32 with two numbers per row, from which backward computes their loss's
    gradient, and a copy of the other heads' output; the joined output is saved anyway. Where they are tapped,
    a copy of their queries and keys, which in backward its gradients follow, and four numbers per row.
    """
    guided = setup.guided_heads * shape.head_width
    rest = shape.heads * shape.head_width - guided
    if not guided:
        return 0
    if setup.tapped:
        per_token = 4 * guided * _query_bytes(shape, setup.precision) + 4 * _FP32 * setup.guided_heads
        return setup.tokens * per_token * setup.guided_layers
    per_token = _FP32 * (guided + 2 * setup.guided_heads) + rest * _PRODUCT_BYTES[setup.precision]
    return setup.tokens * per_token * setup.guided_layers


def _query_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes of a number in queries and keys as attention gets them."""
    rotated = precision == "autocast" and shape.kind not in _NOT_ROTATED
    return _FP32 if rotated else _PRODUCT_BYTES[precision]


def _guidance_workspace(shape: ModelShape, setup: MemorySetup) -> int:
    """Temporary bytes: of one guided layer in row blocks fp32 q, k, v, their gradients and blocks of rows;
    where heads of small tensors are gathered, gradients of all heads of the guided layers."""
    if setup.tapped:
        queries = shape.heads * shape.head_width
        if setup.checkpointing or setup.tokens * queries > SMALL or not setup.guided_heads:
            return 0
        widths = queries + shape.kv_heads * shape.head_width
        return setup.tokens * widths * _query_bytes(shape, setup.precision) * setup.guided_layers
    blocks = 3 * _FP32 * setup.micro_batch * setup.guided_heads * setup.row_block * setup.block_length
    return setup.tokens * setup.guided_heads * shape.head_width * 6 * _FP32 + blocks
