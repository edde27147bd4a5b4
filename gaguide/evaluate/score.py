"""Log-probabilities of the scored tokens of rows, by one forward pass over each batch.

Logits are made only at positions that a score reads, and turned into log-probabilities in fp32. Where a
model cannot take rows with branches (its attention does not follow the mask, or its output is more than a
linear layer), which is found out on a small row, sequences are computed separately instead.
Legend: B rows, T tokens, N scored positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from gaguide.dist import out_of_memory
from gaguide.evaluate.causal import WORTH_TOKENS, causal_beginning
from gaguide.evaluate.generate import generate
from gaguide.evaluate.rows import Read, Row, TokenSequence, build_row, shared_length

Scores = dict[tuple[int, int], float]
"""(example, pair) → log-probability of the continuation, natural logarithm."""

_LOGIT_POSITIONS = 1024
"""Positions whose logits exist at a time: 1,024 × 50,257 fp32 numbers are 0.2 GB."""
_LEAST_ROWS = 32
"""Matrix products get at least so many rows (of zeros, if need be): with fewer, CPU libraries add up in an
order that depends on the number of threads, and results would differ in the last bit between launchers."""
_CHECKED_PREFIX = 32
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.25


@dataclass
class Scorer:
    """Scores batches of rows with a model in eval mode on `device`; `shares`: prefixes are shared.

    whole: call the model only as a whole, as ZeRO-3 needs it, where also all ranks must call it equally
    often: `passes` counts, `idle` fills up, and nothing is halved. causal_tokens: see `causal_beginning`.
    """

    model: Any
    device: torch.device
    shares: bool = True
    say: Callable[[str], None] = print
    whole: bool = False
    causal_tokens: int = WORTH_TOKENS

    def score(self, rows: Sequence[Row]) -> Scores:
        """Scores of all reads of `rows`. Rows that do not fit into memory are halved, which is said."""
        return self._halving(rows, self._together if self.shares else self._separate)

    def passes(self, rows: Sequence[Row]) -> int:
        """How often `score` calls the model for these rows."""
        return 1 if self.shares else len(_portions(rows))

    @torch.no_grad()
    def idle(self) -> None:
        """A pass that counts for nothing."""
        self.model(
            input_ids=torch.zeros(1, _LEAST_ROWS, dtype=torch.long, device=self.device), use_cache=False
        )

    def generate(self, rows: Sequence[Row]) -> Scores:
        """Ids of the tokens that continue each row, in place of scores."""
        return self._halving(rows, partial(generate, self.model, self.device))

    def _halving(self, rows: Sequence[Row], compute: Callable[[Sequence[Row]], Scores]) -> Scores:
        try:
            with self._no_gradients():
                return compute(rows)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(rows) == 1 or self.whole:
                error.add_note("lower --batch-tokens")
                raise
        torch.cuda.empty_cache()
        half = len(rows) // 2
        self.say(f"out of memory with {len(rows)} rows of {max(map(len, rows))} tokens: halved")
        return self._halving(rows[:half], compute) | self._halving(rows[half:], compute)

    def _no_gradients(self) -> AbstractContextManager[None]:
        # DeepSpeed's partitioned parameters cannot be tensors of inference mode.
        return torch.no_grad() if self.whole else torch.inference_mode()

    def check(self, rows: Sequence[Row]) -> float:
        """Largest difference between shared and separate computation on the smallest row.

        One with branches, if there is any: others ask less of the model. Sets `shares` to False where the
        difference is beyond the tolerance of the model's dtype, where the model does not take such inputs at
        all, or where a row is deeper than its sliding window.
        """
        if not rows:
            return 0.0
        window = getattr(self.model.config, "sliding_window", None)
        if window and max(max(row.depths) for row in rows) >= window:
            self.shares = False
            return math.inf
        smallest = min(rows, key=lambda row: (not row.branches, len(row), row.reads[0].key))
        try:
            with self._no_gradients():
                difference = self._difference(smallest)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            if out_of_memory(error):
                raise
            difference = math.inf
        # A NaN on both sides is the model's own doing and no reason to compute it twice.
        self.shares = not difference > _TOLERANCE.get(self.model.dtype, _HALF_TOLERANCE)
        return difference

    def _difference(self, row: Row) -> float:
        """On two or three sequences of a row, without most of what they share: a check need not be costly."""
        first, last = row.reads[0], row.reads[-1]
        beside = (read for read in row.reads if row.ends[read.positions[-1]] != len(row))
        ids = {read: row.sequence(read) for read in (first, next(beside, first), last)}
        common = min(shared_length(ids[first], other) for other in ids.values())
        longest_target = max(len(read.target_ids) for read in ids)
        cut = max(0, common - max(_CHECKED_PREFIX, longest_target))
        part = build_row([TokenSequence(ids[read][cut:], read.target_ids, read.key) for read in ids])
        # So that the causal way, which a short prefix would not be worth, is checked too.
        shared = replace(self, causal_tokens=_CHECKED_PREFIX // 2)._together([part])
        separate = self._separate([part])
        return max(abs(shared[key] - separate[key]) for key in shared)

    def _shared(self, rows: Sequence[Row]) -> Scores:
        given = inputs(rows, self.device, self.model.dtype)
        with causal_beginning(rows, given.get("attention_mask"), self.causal_tokens):
            hidden_BTD = self.model.base_model(**given, use_cache=False, return_dict=True).last_hidden_state
        flat, reads = _flat_reads(rows, hidden_BTD.shape[1])
        hidden_ND = hidden_BTD.flatten(0, 1)[flat.to(self.device)]
        head = self.model.get_output_embeddings()
        return _read(hidden_ND, head, reads)

    def _together(self, rows: Sequence[Row]) -> Scores:
        return self._whole(rows) if self.whole else self._shared(rows)

    def _whole(self, rows: Sequence[Row]) -> Scores:
        given = inputs(rows, self.device, self.model.dtype)
        flat, reads = _flat_reads(rows, given["input_ids"].shape[1])
        kept_BT = torch.zeros(given["input_ids"].shape, dtype=torch.bool)
        kept_BT.view(-1)[flat] = True
        with causal_beginning(rows, given.get("attention_mask"), self.causal_tokens):
            logits_NV = self.model(**given, use_cache=False, logits_to_keep=kept_BT.to(self.device)).logits
        return _read(logits_NV, torch.nn.Identity(), reads)

    def _separate(self, rows: Sequence[Row]) -> Scores:
        """Each sequence as a row of its own, through the whole model; right for any causal model."""
        scores: Scores = {}
        for some in _portions(rows):
            logits_BTV = self.model(**inputs(some, self.device, self.model.dtype), use_cache=False).logits
            flat, reads = _flat_reads(some, logits_BTV.shape[1])
            scores |= _read(logits_BTV.flatten(0, 1)[flat.to(self.device)], torch.nn.Identity(), reads)
        return scores


def sum_in_one_order() -> None:
    """Have MKL add up in one order for any number of threads; call it before the first matrix product.

    Ranks of one host have fewer threads the more they are, and MKL splits long sums among its threads: of
    3,072 numbers for up to 384 tokens. Measured, its strict mode costs 4%.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # MKL reads it once


def _portions(rows: Sequence[Row]) -> list[list[Row]]:
    """The sequences of `rows` as rows of their own, longest first, so many at a time as logits may exist."""
    alone = [
        build_row([TokenSequence(row.sequence(read), read.target_ids, read.key)])
        for row in rows
        for read in row.reads
    ]
    alone.sort(key=len)
    portions = []
    while alone:
        count = max(1, min(len(alone), _LOGIT_POSITIONS // len(alone[-1])))
        portions.append(alone[-count:])
        alone = alone[:-count]
    return portions


def inputs(
    rows: Sequence[Row], device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Model inputs [B, T] of rows, padded on the right; with a mask [B, 1, T, T] if any row branches.

    The mask is what is added to the attention scores, 0 or minus infinity, in the model's `dtype`: a Boolean
    one would be turned into that in every layer.
    B may exceed their number. Without branches causal attention hides the padding from what is read.
    """
    longest = max(map(len, rows))
    ids_BT = torch.zeros(max(len(rows), -(-_LEAST_ROWS // longest)), longest, dtype=torch.long)
    for at, row in enumerate(rows):
        ids_BT[at, : len(row)] = torch.tensor(row.token_ids)
    if not any(row.branches for row in rows):
        return {"input_ids": ids_BT.to(device)}
    positions_BT = torch.zeros_like(ids_BT)
    ends_BT = torch.full_like(ids_BT, longest)  # padding sees what stands before it, so that no row is empty
    for at, row in enumerate(rows):
        positions_BT[at, : len(row)] = torch.tensor(row.depths)
        ends_BT[at, : len(row)] = torch.tensor(row.ends)
    query_T1 = torch.arange(longest, device=device)[:, None]
    key_1T = torch.arange(longest, device=device)[None, :]
    mask_BTT = (key_1T <= query_T1) & (query_T1 < ends_BT.to(device)[:, None, :])
    return {
        "input_ids": ids_BT.to(device),
        "position_ids": positions_BT.to(device),
        "attention_mask": torch.where(mask_BTT, 0.0, -math.inf).to(dtype)[:, None],
    }


def _flat_reads(rows: Sequence[Row], longest: int) -> tuple[torch.Tensor, list[tuple[Read, list[int]]]]:
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


def _read(hidden_ND: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], reads: list[Any]) -> Scores:
    """Sums the log-probabilities of each read; logits exist for `_LOGIT_POSITIONS` positions at a time."""
    places = torch.tensor([place for _, at in reads for place in at])
    targets = torch.tensor([token for read, _ in reads for token in read.target_ids])
    log_probabilities = torch.empty(len(places), dtype=torch.float64)
    for start in range(0, len(hidden_ND), _LOGIT_POSITIONS):
        chunk_ND = hidden_ND[start : start + _LOGIT_POSITIONS]
        missing = max(0, _LEAST_ROWS - len(chunk_ND))
        logits_NV = head(torch.nn.functional.pad(chunk_ND, (0, 0, 0, missing))).float()
        here = ((places >= start) & (places < start + _LOGIT_POSITIONS)).nonzero().squeeze(1)
        rows = (places[here] - start).to(logits_NV.device)
        chosen = logits_NV[rows, targets[here].to(logits_NV.device)]
        log_probabilities[here] = (chosen - logits_NV.logsumexp(dim=-1)[rows]).double().cpu()
    scores: Scores = {}
    at = 0
    for read, placed in reads:
        scores[read.key] = float(log_probabilities[at : at + len(placed)].sum())
        at += len(placed)
    return scores
