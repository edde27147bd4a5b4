"""Rows as model inputs, and scores from hidden states.

Logits are computed only at positions where a score is read, some at a time, and turned into log-probabilities
in fp32. Legend: B rows, T tokens, N scored positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from gaguide.evaluate.schedule.rows import Readout, Row

Scores = dict[tuple[int, int], float]
"""(example, pair) → log-probability of the continuation, natural logarithm; of greedy readouts 1 or 0."""

MAX_LOGIT_POSITIONS = 1024
"""Positions whose logits exist at a time: 1,024 × 50,257 fp32 numbers are 0.2 GB."""
MIN_ROWS = 32
"""Matrix products get at least this many rows (of zeros, if need be): with fewer, CPU libraries sum in an
order that depends on the number of threads, and results would differ in the last bit between launchers."""
_CACHED_ROWS = 16
"""Rows of logits that stay in a CPU's cache between operations."""


def model_inputs(
    rows: Sequence[Row], device: torch.device, dtype: torch.dtype = torch.float32, prefix: int = 0
) -> dict[str, torch.Tensor]:
    """Model inputs [B, T] of rows, padded on the right; with a mask [B, 1, T, T] if any row branches.

    prefix: number of cached tokens before every row; the mask, always present then, does not cover them.
    The mask is additive, 0 or minus infinity, in the model's `dtype`: a Boolean one would be converted in
    every layer. B may exceed the number of rows. Without branches causal attention hides the padding.
    """
    longest = max(map(len, rows))
    ids_BT = torch.zeros(max(len(rows), -(-MIN_ROWS // longest)), longest, dtype=torch.long)
    for at, row in enumerate(rows):
        ids_BT[at, : len(row)] = torch.tensor(row.token_ids)
    if not prefix and not any(row.branches for row in rows):
        return {"input_ids": ids_BT.to(device)}
    positions_BT = torch.full_like(ids_BT, prefix)
    ends_BT = torch.full_like(ids_BT, longest)  # padding attends to what precedes it: no mask row is empty
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


def locate_readouts(
    rows: Sequence[Row], longest: int
) -> tuple[torch.Tensor, list[tuple[Readout, list[int]]]]:
    """Scored positions [N] of the flattened batch [B × T], sorted, and each readout's places among them."""
    wanted = sorted(
        {
            at * longest + p
            for at, row in enumerate(rows)
            for readout in row.readouts
            for p in readout.positions
        }
    )
    place = {position: n for n, position in enumerate(wanted)}
    located = [
        (readout, [place[at * longest + p] for p in readout.positions])
        for at, row in enumerate(rows)
        for readout in row.readouts
    ]
    return torch.tensor(wanted), located


@contextmanager
def logits_of(model: Any, flat: torch.Tensor) -> Iterator[None]:
    """Within, `model` computes the logits [N, V] of the positions `flat` [N] of its batch only.

    By a hook of the output layer: a mask as `logits_to_keep` is accepted by newer transformers only, and not
    by all of its models. Raises `TypeError` at the end if the model has not called its output layer.
    """
    used = False

    def choose(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        nonlocal used
        used = True
        return inputs[0].flatten(0, 1)[flat.to(inputs[0].device)]

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
    if not used:
        raise TypeError(f"{type(model).__name__} does not call its output layer")


def read_scores(
    hidden_ND: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    located: Sequence[tuple[Readout, list[int]]],
) -> Scores:
    """The summed log-probabilities of each readout, or whether it is greedy (1 or 0, NaN where logits are not
    finite); `head` maps hidden states [N, D] to logits [N, V].

    Logits exist for `MAX_LOGIT_POSITIONS` positions at a time.
    """
    places = torch.tensor([place for _, places in located for place in places])
    targets = torch.tensor([token for readout, _ in located for token in readout.target_ids])
    log_probabilities = torch.empty(len(places), dtype=torch.float64)
    greedy = torch.tensor([readout.greedy for readout, places in located for _ in places], dtype=torch.bool)
    for start in range(0, len(hidden_ND), MAX_LOGIT_POSITIONS):
        chunk_ND = hidden_ND[start : start + MAX_LOGIT_POSITIONS]
        missing = max(0, MIN_ROWS - len(chunk_ND))
        logits_NV = head(torch.nn.functional.pad(chunk_ND, (0, 0, 0, missing))).float()
        here = ((places >= start) & (places < start + MAX_LOGIT_POSITIONS)).nonzero().squeeze(1)
        rows = (places[here] - start).to(logits_NV.device)
        wanted = targets[here].to(logits_NV.device)
        chosen = logits_NV[rows, wanted]
        most_probable = _is_most_probable(logits_NV, rows, wanted, greedy[here])
        log_probabilities[here] = (chosen - logsumexp(logits_NV)[rows]).double().cpu()
        log_probabilities[here[greedy[here]]] = most_probable
    scores: Scores = {}
    at = 0
    for readout, readout_places in located:
        values = log_probabilities[at : at + len(readout_places)]
        scores[readout.key] = float(values.prod() if readout.greedy else values.sum())
        at += len(readout_places)
    return scores


def _is_most_probable(
    logits_NV: torch.Tensor, rows: torch.Tensor, wanted: torch.Tensor, asked: torch.Tensor
) -> torch.Tensor:
    """For those of (row, token) that are `asked`: 1 where the token is the row's first largest logit, else 0;
    NaN where that logit is not finite."""
    if not asked.any():
        return torch.empty(0, dtype=torch.float64)
    asked = asked.to(rows.device)
    largest_N, first_N = logits_NV.max(-1)
    hits = (first_N[rows[asked]] == wanted[asked]).double()
    return torch.where(largest_N[rows[asked]].isfinite(), hits, math.nan).cpu()


def logsumexp(logits_NV: torch.Tensor) -> torch.Tensor:
    """`torch.logsumexp` over the last dimension, [N], in place: a copy of the logits would cost as much
    again.

    Overwrites its argument. On a CPU some rows at a time, which stay in its cache between operations.
    """
    # Never a single row, whose sum torch would split among its threads.
    parts = len(logits_NV) // _CACHED_ROWS if logits_NV.device.type == "cpu" else 1
    return torch.cat([_logsumexp_in_place(part_NV) for part_NV in logits_NV.tensor_split(max(1, parts))])


def _logsumexp_in_place(logits_NV: torch.Tensor) -> torch.Tensor:
    peak_N1 = logits_NV.amax(dim=-1, keepdim=True)
    peak_N1.masked_fill_(peak_N1.isinf(), 0.0)
    return (logits_NV.sub_(peak_N1).exp_().sum(dim=-1, keepdim=True).log_() + peak_N1).squeeze(-1)
