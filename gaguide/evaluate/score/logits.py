"""Rows as a model's inputs, and their scores from its logits.

Logits are made only at positions that a score reads, some at a time, and turned into log-probabilities in
fp32. Legend: B rows, T tokens, N scored positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gaguide.evaluate.schedule.rows import Read, Row

Scores = dict[tuple[int, int], float]
"""(example, pair) → log-probability of the continuation, natural logarithm."""

LOGIT_POSITIONS = 1024
"""Positions whose logits exist at a time: 1,024 × 50,257 fp32 numbers are 0.2 GB."""
_CACHED_ROWS = 16
LEAST_ROWS = 32
"""Matrix products get at least so many rows (of zeros, if need be): with fewer, CPU libraries add up in an
order that depends on the number of threads, and results would differ in the last bit between launchers."""


def inputs(
    rows: Sequence[Row], device: torch.device, dtype: torch.dtype = torch.float32, prefix: int = 0
) -> dict[str, torch.Tensor]:
    """Model inputs [B, T] of rows, padded on the right; with a mask [B, 1, T, T] if any row branches.

    prefix: so many tokens stand before every row, and are not in the mask, which there then is.
    The mask is what is added to the attention scores, 0 or minus infinity, in the model's `dtype`: a Boolean
    one would be turned into that in every layer.
    B may exceed their number. Without branches causal attention hides the padding from what is read.
    """
    longest = max(map(len, rows))
    ids_BT = torch.zeros(max(len(rows), -(-LEAST_ROWS // longest)), longest, dtype=torch.long)
    for at, row in enumerate(rows):
        ids_BT[at, : len(row)] = torch.tensor(row.token_ids)
    if not prefix and not any(row.branches for row in rows):
        return {"input_ids": ids_BT.to(device)}
    positions_BT = torch.full_like(ids_BT, prefix)
    ends_BT = torch.full_like(ids_BT, longest)  # padding sees what stands before it, so that no row is empty
    for at, row in enumerate(rows):
        positions_BT[at, : len(row)] += torch.tensor(row.depths)
        ends_BT[at, : len(row)] = torch.tensor(row.ends)
    query_T1 = torch.arange(longest, device=device)[:, None]
    key_1T = torch.arange(longest, device=device)[None, :]
    mask_BTT = (key_1T <= query_T1) & (query_T1 < ends_BT.to(device)[:, None, :])
    return {
        "input_ids": ids_BT.to(device),
        "position_ids": positions_BT.to(device),
        "attention_mask": torch.where(mask_BTT, 0.0, -math.inf).to(dtype)[:, None],
    }


def flat_reads(rows: Sequence[Row], longest: int) -> tuple[torch.Tensor, list[tuple[Read, list[int]]]]:
    """Scored positions of the flattened batch [N], sorted, and each read's places among them."""
    wanted = sorted(
        {at * longest + p for at, row in enumerate(rows) for read in row.reads for p in read.positions}
    )
    place = {position: n for n, position in enumerate(wanted)}
    reads = [
        (read, [place[at * longest + p] for p in read.positions])
        for at, row in enumerate(rows)
        for read in row.reads
    ]
    return torch.tensor(wanted), reads


def read_scores(
    hidden_ND: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], reads: list[Any]
) -> Scores:
    """Sums the log-probabilities of each read; logits exist for `LOGIT_POSITIONS` positions at a time."""
    places = torch.tensor([place for _, at in reads for place in at])
    targets = torch.tensor([token for read, _ in reads for token in read.target_ids])
    log_probabilities = torch.empty(len(places), dtype=torch.float64)
    for start in range(0, len(hidden_ND), LOGIT_POSITIONS):
        chunk_ND = hidden_ND[start : start + LOGIT_POSITIONS]
        missing = max(0, LEAST_ROWS - len(chunk_ND))
        logits_NV = head(torch.nn.functional.pad(chunk_ND, (0, 0, 0, missing))).float()
        here = ((places >= start) & (places < start + LOGIT_POSITIONS)).nonzero().squeeze(1)
        rows = (places[here] - start).to(logits_NV.device)
        chosen = logits_NV[rows, targets[here].to(logits_NV.device)]
        log_probabilities[here] = (chosen - logsumexp(logits_NV)[rows]).double().cpu()
    scores: Scores = {}
    at = 0
    for read, placed in reads:
        scores[read.key] = float(log_probabilities[at : at + len(placed)].sum())
        at += len(placed)
    return scores


def logsumexp(logits_NV: torch.Tensor) -> torch.Tensor:
    """As torch's over the last dimension, [N], but in place: a copy of the logits costs as much again.

    On a CPU some rows at a time, which stay in its cache from one operation to the next.
    """
    # Never one row alone, whose sum torch would split among its threads.
    parts = len(logits_NV) // _CACHED_ROWS if logits_NV.device.type == "cpu" else 1
    return torch.cat([_in_place(part_NV) for part_NV in logits_NV.tensor_split(max(1, parts))])


def _in_place(logits_NV: torch.Tensor) -> torch.Tensor:
    peak_N1 = logits_NV.amax(dim=-1, keepdim=True)
    peak_N1.masked_fill_(peak_N1.isinf(), 0.0)
    return (logits_NV.sub_(peak_N1).exp_().sum(dim=-1, keepdim=True).log_() + peak_N1).squeeze(-1)
