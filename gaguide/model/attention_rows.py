"""Scores of chosen heads from an attention call's queries and keys, with invisible keys hidden.

Shapes: B batch, H heads, G key/value heads, h chosen heads, Q query rows, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gaguide.model.attention_consumer import AttentionCall


def masked_scores(call: AttentionCall, heads: Sequence[int], start: int, stop: int) -> torch.Tensor:
    """Scores [B, h, Q, T] of the queries [start, stop), -inf where a key is hidden; fp32, or fp64 for fp64.

    The softmax over a row that sees nothing is NaN.
    """
    q_BHTD, k_BGTD, mask = call.q_BHTD, call.k_BGTD, call.mask
    dtype = torch.float64 if q_BHTD.dtype == torch.float64 else torch.float32
    chosen = torch.tensor(heads, device=q_BHTD.device)
    groups = q_BHTD.shape[1] // k_BGTD.shape[1]
    T = q_BHTD.shape[2]
    # Autocast would take the product back to half precision.
    with torch.autocast(q_BHTD.device.type, enabled=False):
        q_BhQD = q_BHTD[:, :, start:stop].index_select(1, chosen).to(dtype)
        k_BhTD = k_BGTD.index_select(1, chosen // groups).to(dtype)
        s_BhQT = (q_BhQD @ k_BhTD.mT) * call.scale
        softcap = call.kwargs.get("softcap")
        if softcap is not None:
            s_BhQT = softcap * torch.tanh(s_BhQT / softcap)
        if mask is None:
            hidden = torch.ones(stop - start, T, dtype=torch.bool, device=s_BhQT.device).triu_(start + 1)
        else:
            rows = (mask if mask.shape[1] == 1 else mask.index_select(1, chosen))[:, :, start:stop, :T]
            if rows.dtype == torch.bool:
                hidden = ~rows
            else:  # additive: biases are small, hidden entries are near the lowest finite value
                s_BhQT, hidden = s_BhQT + rows.to(dtype), rows < torch.finfo(rows.dtype).min / 2
        return s_BhQT.masked_fill(hidden, -torch.inf)


def row_softmax(s_BhQT: torch.Tensor) -> torch.Tensor:
    """Softmax of scores over the keys; zero where a key is hidden, NaN in rows with a score of NaN or inf."""
    return torch.softmax(s_BhQT, -1).masked_fill(s_BhQT == -torch.inf, 0.0)


def attention_rows(call: AttentionCall, heads: Sequence[int], start: int, stop: int) -> torch.Tensor:
    """Attention probabilities [B, h, Q, T] before dropout; rows that see nothing are zero.

    Where the model has attention sinks, their share is missing from the rows' sums.
    """
    return softmax_rows(call, heads, masked_scores(call, heads, start, stop))


def softmax_rows(call: AttentionCall, heads: Sequence[int], s_BhQT: torch.Tensor) -> torch.Tensor:
    """`attention_rows` of scores that `masked_scores` gave for the same heads; NaN where they are."""
    sinks_H = call.kwargs.get("s_aux")
    if sinks_H is None:
        return row_softmax(s_BhQT)
    sink_BhQ1 = sinks_H[list(heads)].to(s_BhQT.dtype).view(1, -1, 1, 1).expand(*s_BhQT.shape[:3], 1)
    return torch.softmax(torch.cat([s_BhQT, sink_BhQ1], -1), -1)[..., :-1]
