"""Interface of observers and modifiers of attention that can be attached to a model (attention_hooks.py).

A consumer is asked for a *pass handler* at the start of each forward pass. The handler holds all state of
that pass and acts on each layer in five stages; each stage is completed for all handlers before the next one
begins, so that the order of nesting does not matter:

    transform_inputs   change q, k or v              (patching or scaling them)
    observe            read q, k and v               (measuring, collecting maps)
    tap                read q and k with gradients   (a loss in addition to the model's own attention)
    produce            compute some heads' output    (a loss that shares the softmax with the output);
                                                      the model's own backend computes the rest
    transform_output   change the layer's output     (a head's output set to zero, a mean or another run's;
                                                      attention without certain edges)

Shapes: B batch, H heads, G key/value heads, h chosen heads, T positions, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from gaguide.model.head_split import HeadSplit

SOFTMAX_ARGUMENTS = frozenset(
    {"position_bias", "softcap", "s_aux", "sinks", "head_mask", "indices", "block_indices"}
)
"""Arguments of some models' attention that change the softmax, or which keys are in it."""


@dataclass(frozen=True)
class PassInputs:
    """Arguments of the model's call, positional or by keyword."""

    ids_BT: torch.Tensor | None
    """Token ids (int64); None where the model was called with embeddings."""
    attention_mask: Any
    """The caller's mask: [B, T] with 1 on tokens and 0 on padding, any other mask, or None."""
    is_checkpointed: bool = False
    """Whether transformers' gradient checkpointing recomputes layers of this pass in backward."""


@dataclass(frozen=True)
class AttentionCall:
    """Arguments of one layer's attention in one forward pass."""

    layer: int
    """Index of the layer."""
    module: nn.Module
    """The layer's attention module."""
    q_BHTD: torch.Tensor
    """Queries, after the position encoding."""
    k_BGTD: torch.Tensor
    """Keys, after the position encoding; H / G query heads share each."""
    v_BGTD: torch.Tensor
    """Values."""
    mask: torch.Tensor | None
    """Keys that each query sees, whatever the backend's form: [B or 1, 1 or H, T, T], Boolean (True is
    visible) or additive; None is causal. The backend itself runs with the mask that the model made for it."""
    dropout: float
    """Probability with which attention probabilities are dropped."""
    scaling: float | None
    """Factor of the scores; None is D^-0.5."""
    kwargs: dict[str, Any]
    """All other arguments of the model's attention function."""

    @property
    def scale(self) -> float:
        """Factor of the scores as a number."""
        return self.q_BHTD.shape[-1] ** -0.5 if self.scaling is None else self.scaling


class PassHandler:
    """A consumer's part in one forward pass; methods that are not overridden leave the model as it is.

    Layers call it during the forward pass and, under gradient checkpointing, again during backward. It must
    then do the same operations. After `finish` it must not hold a tensor with a gradient: a checkpoint's
    recomputation keeps the handler alive, and autograd keeps the recomputation.
    """

    understands: frozenset[str] = frozenset()
    """Those of `SOFTMAX_ARGUMENTS` that it handles, or may ignore; models with others are refused."""

    def transform_inputs(self, call: AttentionCall) -> AttentionCall:
        """The arguments that the attention of this layer runs with."""
        return call

    def observe(self, call: AttentionCall) -> None:
        """Read the arguments of this layer's attention."""

    def tap(self, call: AttentionCall) -> AttentionCall:
        """The arguments with tapped queries and keys (tap.py), which only the attention uses."""
        return call

    def split(self, layer: int) -> HeadSplit | None:
        """The heads of the layer whose output `produce` computes; None for none. One handler a layer."""
        return None

    def produce(
        self, call: AttentionCall, q_BhTD: torch.Tensor, k_BhTD: torch.Tensor, v_BhTD: torch.Tensor
    ) -> torch.Tensor:
        """Attention output [B, h, T, D] of the chosen heads, whose keys and values are one per head."""
        raise NotImplementedError

    def transform_output(self, call: AttentionCall, out_BTHD: torch.Tensor) -> torch.Tensor:
        """The layer's attention output, before the output projection."""
        return out_BTHD

    def finish(self) -> None:
        """Called after the model's forward, also where it raised; later calls are recomputations."""


class AttentionConsumer(Protocol):
    """Something that observes or changes attention for as long as it is attached."""

    @property
    def changes_outputs(self) -> bool:
        """Whether it changes the model's outputs (beyond rounding)."""
        ...

    def start_pass(self, inputs: PassInputs) -> PassHandler | None:
        """A new handler for the forward pass that begins; None to leave this pass alone."""
        ...
