"""Floating-point operations per token: forward, training, recomputation under checkpointing, guidance.

The product of an [m, k] and a [k, n] matrix counts 2 m k n. Norms, activations, softmax, dropout and the
optimizer are left out: they are a few percent and bound by memory traffic (Narayanan et al. 2021,
arXiv:2104.04473, appendix; Korthikanti et al. 2022, arXiv:2205.05198, appendix A). Recomputation in the
backward of a fused attention kernel is not counted, as in the usual definition of model FLOPs utilisation
(Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass

from gaguide.model.shape import ModelShape

# Operations that guidance adds per entry of a guided head's attention row. Forward: two norms of 2 each,
# the mass as a matrix-vector product of 2, subtraction of the target 2. Backward: two multiply-adds.
_GUIDED_FORWARD, _GUIDED_BACKWARD = 8, 4


@dataclass(frozen=True)
class TokenFlops:
    """Operations per token in a forward pass, averaged over the T positions of a sequence."""

    matrices: float
    """Products with the weight matrices of all blocks."""
    attention: float
    """Scores and weighted values, over the keys that a query sees: (T + 1) / 2 on average if causal."""
    logits: float
    """The output layer."""
    guidance: float
    """Operations that guided heads add."""
    recompute: float
    """The second forward pass of the blocks under checkpointing."""
    adapters: float
    """Products with the matrices of adapters."""
    weight_gradients: float
    """Gradients of the matrices that are trained, in backward."""

    @property
    def forward(self) -> float:
        """One forward pass."""
        return self.matrices + self.attention + self.logits + self.guidance + self.adapters

    @property
    def model(self) -> float:
        """Forward and backward with guidance, without recomputation: operations that utilisation counts."""
        passes = 2 * (self.matrices + self.logits + self.adapters) + 3 * self.attention
        return passes + self.weight_gradients + self.guidance * (1 + _GUIDED_BACKWARD / _GUIDED_FORWARD)

    @property
    def training(self) -> float:
        """Operations that the hardware executes: `model` and `recompute`."""
        return self.model + self.recompute


def flops_per_token(
    shape: ModelShape,
    T: int,
    *,
    causal: bool = True,
    checkpointing: bool = False,
    guided_heads: int = 0,
    trained: int | None = None,
    added: int = 0,
) -> TokenFlops:
    """Operations per token at sequence length `T`.

    causal: count visible keys only, as a causal kernel does; False counts T keys per query, as PaLM does.
    checkpointing: the blocks run forward once more, the output layer does not. guided_heads: over all layers.
    trained: parameters that get a gradient, None for all; backward counts the whole model even so, which
    is too much where the lowest layers are frozen. added: parameters of adapters, part of `trained`.
    """
    keys = (T + 1) / 2 if causal else T
    matrices = 2.0 * shape.matrices
    attention = 4.0 * shape.layers * shape.heads * shape.head_width * keys
    guidance = float(_GUIDED_FORWARD) * guided_heads * (T + 1) / 2
    logits, adapters = 2.0 * shape.head_matrix, 2.0 * added
    every = matrices + logits + adapters
    return TokenFlops(
        matrices=matrices,
        attention=attention,
        logits=logits,
        guidance=guidance,
        recompute=matrices + attention + guidance + adapters if checkpointing else 0.0,
        adapters=adapters,
        weight_gradients=every if trained is None else min(2.0 * trained, every),
    )
