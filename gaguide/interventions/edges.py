"""Change attention edges, from a set of queries to a set of keys: knock them out, or scale them.

With renormalising, the attention of a query is divided by its new sum: knocked-out mass goes to the other
keys in proportion. Without it, the rest of the row stays as it was and the head writes less.

Shapes: B batch, H heads, h heads of the layer that are changed, Q query rows of a block, T positions, D head
width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from gaguide.guidance.masks import visible_keys
from gaguide.guidance.patterns import Offset, Pattern, target_under
from gaguide.interventions.attach import Head, refuse
from gaguide.model.attention_consumer import AttentionCall, PassInputs
from gaguide.model.attention_rows import masked_scores, row_softmax

_ROWS = 256
"""Query rows of a block: a head's whole matrix would grow with the square of the text."""


@dataclass(frozen=True)
class ScaleEdges:
    """Attention on some edges is multiplied by `factor`; `knock_out_edges` and `scale_targets` make it."""

    heads: tuple[Head, ...]
    """(layer, head) of each."""
    keys: Pattern | None
    """The edges' keys, as the pattern's targets; None: every key."""
    queries: Pattern | None = None
    """The edges' queries, the tokens that a pattern marks (not one by offset); None: every query."""
    factor: float = 0.0
    """Factor of the attention on these edges, not negative; 0 knocks them out."""
    renormalize: bool = True
    """Whether each query's attention sums to 1 afterwards; a query all of whose edges are knocked out
    attends to nothing, and the head writes zero there."""

    understands = frozenset({"softcap"})

    def __post_init__(self) -> None:
        if not (self.factor >= 0 and math.isfinite(self.factor)):
            raise refuse(f"factor {self.factor} must be a finite number of at least 0", "give 0 to knock out")

    def change(
        self, call: AttentionCall, inputs: PassInputs, heads: Sequence[int], out_BTHD: torch.Tensor
    ) -> torch.Tensor:
        """Outputs [B, T, h, D] from attention with these edges changed.

        Where an earlier intervention has replaced the output of a head, this one replaces it again.
        """
        if call.dropout > 0:
            raise refuse(
                "edges cannot be changed while attention dropout is active", "call model.eval() first"
            )
        if inputs.ids_BT is None:
            raise refuse("patterns match token ids, which inputs_embeds lacks", "call with input_ids")
        T = call.q_BHTD.shape[2]
        if inputs.ids_BT.shape[1] != T:
            raise refuse("the model runs on other positions than its input_ids", "call it without a cache")
        groups = call.q_BHTD.shape[1] // call.v_BGTD.shape[1]
        v_BhTD = call.v_BGTD[:, [head // groups for head in heads]]
        mask_BQK = visible_to_any(call.mask, T)
        parts = []
        for start in range(0, T, _ROWS):
            stop = min(start + _ROWS, T)
            scores_BhQT = masked_scores(call, heads, start, stop)
            edges_BQT = edge_mask(self.keys, self.queries, inputs.ids_BT, start, stop, mask_BQK)[:, None]
            if self.renormalize:
                change = -torch.inf if self.factor == 0 else math.log(self.factor)
                h_BhQT = row_softmax(torch.where(edges_BQT, scores_BhQT + change, scores_BhQT))
            else:
                h_BhQT = row_softmax(scores_BhQT)
                h_BhQT = torch.where(edges_BQT, h_BhQT * self.factor, h_BhQT)
            parts.append(h_BhQT @ v_BhTD.to(h_BhQT.dtype))
        return torch.cat(parts, 2).transpose(1, 2)


def visible_to_any(mask: torch.Tensor | None, T: int) -> torch.Tensor | None:
    """Keys that a call's mask shows each query in some head, bool [B or 1, T, T]; None is causal."""
    if mask is None:
        return None
    return visible_keys(mask[:, :, :T, :T]).any(1)


def edge_mask(
    keys: Pattern | None,
    queries: Pattern | None,
    ids_BT: torch.Tensor,
    start: int,
    stop: int,
    mask_BQK: torch.Tensor | None,
) -> torch.Tensor:
    """Edges from the queries [start, stop) to keys: bool [B, Q, T], with 1 for B or Q where all agree.

    keys, queries: as in `ScaleEdges`. mask_BQK: what each query sees, as `visible_to_any` gives it.
    """
    T = ids_BT.shape[1]
    edges_BQT = torch.ones(1, 1, T, dtype=torch.bool, device=ids_BT.device)
    if keys is not None:
        target = target_under(keys, ids_BT, mask_BQK)
        if isinstance(target, Offset):
            at_T = torch.arange(T, device=ids_BT.device)
            edges_BQT = (at_T[start:stop, None] - at_T == target.distance)[None]
        else:
            edges_BQT = target.marked_BT[:, None]
    if queries is None:
        return edges_BQT
    marked = target_under(queries, ids_BT, mask_BQK)
    if isinstance(marked, Offset):
        raise refuse(
            f"{queries.name} marks edges, not tokens, so it cannot choose queries",
            "choose queries by a lexicon, and give the offset as keys",
        )
    return edges_BQT & marked.marked_BT[:, start:stop, None]


def knock_out_edges(
    heads: Iterable[Head], keys: Pattern | None, queries: Pattern | None = None, renormalize: bool = True
) -> ScaleEdges:
    """Remove the attention of `heads` from the tokens of `queries` (None: all) to the targets of `keys`."""
    return ScaleEdges(tuple(heads), keys, queries, 0.0, renormalize)


def scale_targets(heads: Iterable[Head], keys: Pattern, factor: float) -> ScaleEdges:
    """Multiply the attention of `heads` on the targets of `keys` by `factor` and renormalise each query.

    Steering at inference in the manner of PASTA (Zhang et al. 2024), which multiplies the attention on all
    other tokens by alpha: the same as `factor` 1 / alpha.
    """
    return ScaleEdges(tuple(heads), keys, None, factor, True)
