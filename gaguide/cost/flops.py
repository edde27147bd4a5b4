"""Floating-point operations per token: forward, training, checkpointing's recomputation, guidance's extra.

A matrix product of [m, k] and [k, n] counts 2 m k n. Norms, activations, softmax, dropout and the optimizer
are left out: a few percent, and bound by memory traffic (Narayanan et al. 2021, arXiv:2104.04473, appendix;
Korthikanti et al. 2022, arXiv:2205.05198, appendix A). These are the model's own operations: what a fused
attention kernel makes again in its backward is not counted, as in the usual definition of model FLOPs
utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass

from gaguide.model.shape import ModelShape

# Operations on one entry of a guided head's attention row that plain attention does not do. Forward: two
# norms of 2, mass by a matrix-vector product of 2, subtraction of the target 2. Backward: two multiply-adds.
_GUIDED_FORWARD, _GUIDED_BACKWARD = 8, 4


@dataclass(frozen=True)
class TokenFlops:
    """Operations per token of a sequence of T tokens, averaged over its positions.

    matrices: every block's products with weights. attention: scores and their sum of values, over the keys
    a query may see, (T + 1) / 2 on average. logits: the output layer. guidance: what guided heads add.
    All forward; `training` adds backward, which is twice forward.
    """

    matrices: float
    attention: float
    logits: float
    guidance: float
    recompute: float

    @property
    def forward(self) -> float:
        """One forward pass."""
        return self.matrices + self.attention + self.logits + self.guidance

    @property
    def model(self) -> float:
        """Forward and backward without recomputation: what model FLOPs utilisation counts, and guidance."""
        plain = 3 * (self.matrices + self.attention + self.logits)
        return plain + self.guidance * (1 + _GUIDED_BACKWARD / _GUIDED_FORWARD)

    @property
    def training(self) -> float:
        """What the hardware does: `model` and checkpointing's second forward pass."""
        return self.model + self.recompute


def flops_per_token(
    shape: ModelShape,
    T: int,
    *,
    causal: bool = True,
    checkpointing: bool = False,
    guided_heads: int = 0,
) -> TokenFlops:
    """Operations per token at sequence length `T`.

    causal: count visible keys only, as a causal kernel does; False counts T keys for every query, as PaLM's
    definition. guided_heads: over all layers. checkpointing: blocks run forward once more, the output layer
    does not.
    """
    keys = (T + 1) / 2 if causal else T
    matrices = 2.0 * shape.layers * shape.block_matrices
    attention = 4.0 * shape.layers * shape.heads * shape.head_width * keys
    guidance = float(_GUIDED_FORWARD) * guided_heads * (T + 1) / 2
    return TokenFlops(
        matrices=matrices,
        attention=attention,
        logits=2.0 * shape.head_matrix,
        guidance=guidance,
        recompute=matrices + attention + guidance if checkpointing else 0.0,
    )
