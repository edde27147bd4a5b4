"""Log-probabilities of the scored tokens of rows, by one forward pass over each batch.

Support for sharing is detected on a small row. Where attention does not accept cached keys and values,
prefixes are computed in each batch; where it does not accept rows with branches (attention that ignores the
mask, an output that is more than a linear layer), sequences are computed separately.
Legend: B rows, T tokens, N scored positions, D width, V vocabulary.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from gaguide.distributed import out_of_memory
from gaguide.evaluate.schedule.batches import Batch
from gaguide.evaluate.schedule.rows import Row, TokenSequence, build_row, longest_prefix
from gaguide.evaluate.score.causal import MIN_CAUSAL_TOKENS, causal_before_branches
from gaguide.evaluate.score.generate import generate
from gaguide.evaluate.score.logits import (
    MAX_LOGIT_POSITIONS,
    MIN_ROWS,
    Scores,
    locate_readouts,
    logits_of,
    model_inputs,
    read_scores,
)
from gaguide.evaluate.score.prefix_cache import PrefixCache
from gaguide.evaluate.score.rearrange import (
    first_merged_branch,
    row_sequences,
    rows_with_prefix,
    sample_row,
    separate_rows,
)

_SAMPLE_PREFIX = 16
"""Common tokens of the small row on which sharing is detected."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.25


class Sharing(enum.IntEnum):
    """Prefixes that are computed once."""

    NOTHING = 0
    """Sequences are computed separately."""
    ROWS = 1
    """Prefixes within a row."""
    PREFIXES = 2
    """Prefixes of rows, and the prefix of many batches too."""


@dataclass
class Scorer:
    """Scores batches of rows with a model in eval mode."""

    model: Any
    """transformers' causal language model."""
    device: torch.device
    """Where the model is."""
    sharing: Sharing = Sharing.PREFIXES
    """Prefixes that are computed once; `detect_sharing` sets it to what the model supports."""
    say: Callable[[str], None] = print
    """Receives a line where a batch is halved for lack of memory."""
    whole_model: bool = False
    """Call the model as a whole only, as ZeRO-3 requires; then all ranks must also call it equally often (see
    `count_passes` and `run_idle_pass`), and batches are not halved."""
    min_causal_tokens: int = MIN_CAUSAL_TOKENS
    """See `causal_before_branches`."""
    _cache: PrefixCache | None = field(default=None, init=False)

    def score(self, rows: Sequence[Row], prefix: tuple[int, ...] = ()) -> Scores:
        """Scores of all readouts of `rows`, which follow `prefix`.

        Where memory runs out, the rows are halved and the halving is reported.
        """
        if prefix and self.sharing < Sharing.PREFIXES:
            rows, prefix = rows_with_prefix(rows, prefix), ()
        if not prefix:
            self._cache = None  # frees its memory
        together = partial(self._score_together, prefix=prefix)
        return self._halving(rows, together if self.sharing else self._score_separately)

    def generate(self, rows: Sequence[Row]) -> Scores:
        """Ids of the tokens that continue each row, in place of scores."""
        self._cache = None
        return self._halving(rows, partial(generate, self.model, self.device))

    def count_passes(self, batches: Sequence[Batch]) -> int:
        """How often `score` calls the model for these batches in sequence, if no prefix is cached before."""
        if not self.sharing:
            rows = [rows_with_prefix(one.rows, one.prefix) for one in batches]
            return sum(len(separate_rows(some, MAX_LOGIT_POSITIONS)) for some in rows)
        if self.sharing < Sharing.PREFIXES:
            return len(batches)
        prefixes = [(), *(batch.prefix for batch in batches)]
        return len(batches) + sum(bool(one) and one != before for before, one in pairwise(prefixes))

    @torch.no_grad()
    def run_idle_pass(self) -> None:
        """A forward pass without a result."""
        self.model(input_ids=torch.zeros(1, MIN_ROWS, dtype=torch.long, device=self.device), use_cache=False)

    def detect_sharing(self, batches: Sequence[Batch]) -> float:
        """Set `sharing` to what the model supports; returns the largest difference that was found.

        Compares shared with separate computation of a small row, one with branches if there is any: the
        others require less of the model. Sharing is reduced where the difference exceeds the tolerance of
        the model's dtype, where the model does not accept such inputs at all, or where a row is deeper than
        its sliding window.
        """
        rows = [(row, batch.prefix) for batch in batches if not batch.generates for row in batch.rows]
        if not rows:
            return 0.0
        window = getattr(self.model.config, "sliding_window", None)
        if window and max(max(row.depths) + len(prefix) for row, prefix in rows) >= window:
            self.sharing = Sharing.NOTHING
            return math.inf
        plain = min(rows, key=_small_and_branching)
        prefixed = min((one for one in rows if one[1]), key=_small_and_branching, default=None)
        self.sharing = Sharing.PREFIXES
        if prefixed is not None:
            difference = self._difference(self._score_after_prefix, *prefixed)
            if not self._tolerates(difference):
                self.sharing = Sharing.ROWS
                merged = None if plain[0].branches else first_merged_branch(batches)
                if merged is not None:
                    plain = merged, ()
            elif prefixed[0].branches or not plain[0].branches:
                return difference  # nothing more is required of the model
        # With a short causal part, so that this way of computing is compared too.
        together = replace(self, min_causal_tokens=_SAMPLE_PREFIX // 2)._score_together
        difference = self._difference(lambda row: together([row]), *plain)
        if not self._tolerates(difference):
            self.sharing = Sharing.NOTHING
        return difference

    def _tolerates(self, difference: float) -> bool:
        # NaN comes from the model, with or without sharing.
        return not difference > _TOLERANCE.get(self.model.dtype, _HALF_TOLERANCE)

    def _difference(self, compute: Callable[[Row], Scores], row: Row, prefix: tuple[int, ...]) -> float:
        """Largest difference from separate computation; infinite where the model raises an error."""
        sample = sample_row(row, prefix, _SAMPLE_PREFIX)
        try:
            with self._no_gradients():
                shared, separate = compute(sample), self._score_separately([sample])
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            if out_of_memory(error):
                raise
            return math.inf
        return max(abs(shared[key] - separate[key]) for key in shared)

    def _halving(self, rows: Sequence[Row], compute: Callable[[Sequence[Row]], Scores]) -> Scores:
        try:
            with self._no_gradients():
                return compute(rows)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(rows) == 1 or self.whole_model:
                error.add_note("lower --batch-tokens")
                raise
        torch.cuda.empty_cache()
        half = len(rows) // 2
        self.say(f"out of memory with {len(rows)} rows of {max(map(len, rows))} tokens: halved")
        return self._halving(rows[:half], compute) | self._halving(rows[half:], compute)

    def _no_gradients(self) -> AbstractContextManager[None]:
        # DeepSpeed's partitioned parameters cannot be tensors of inference mode.
        return torch.no_grad() if self.whole_model else torch.inference_mode()

    def _score_together(self, rows: Sequence[Row], prefix: tuple[int, ...] = ()) -> Scores:
        """Scores by one pass over the rows, after one over a prefix that is not cached yet."""
        given = model_inputs(rows, self.device, self.model.dtype, len(prefix))
        flat, located = locate_readouts(rows, given["input_ids"].shape[1])
        with (
            self._cached(prefix).attending(given["attention_mask"])
            if prefix
            else causal_before_branches(rows, given.get("attention_mask"), self.min_causal_tokens)
        ):
            if self.whole_model:
                with logits_of(self.model, flat):
                    logits_NV = self.model(**given, use_cache=False).logits
            else:
                hidden_BTD = self._hidden(given)
        if self.whole_model:
            return read_scores(logits_NV, torch.nn.Identity(), located)
        hidden_ND = hidden_BTD.flatten(0, 1)[flat.to(self.device)]
        return read_scores(hidden_ND, self.model.get_output_embeddings(), located)

    def _score_separately(self, rows: Sequence[Row]) -> Scores:
        """Each sequence as its own row, through the whole model; correct for any causal model."""
        scores: Scores = {}
        for some in separate_rows(rows, MAX_LOGIT_POSITIONS):
            given = model_inputs(some, self.device, self.model.dtype)
            logits_BTV = self.model(**given, use_cache=False).logits
            flat, located = locate_readouts(some, logits_BTV.shape[1])
            scored_NV = logits_BTV.flatten(0, 1)[flat.to(self.device)]
            scores |= read_scores(scored_NV, torch.nn.Identity(), located)
        return scores

    def _score_after_prefix(self, row: Row) -> Scores:
        """Scores with the first half of the row's common tokens from the cache, and the rest after it."""
        sequences = row_sequences([row])
        shared = max(1, longest_prefix(sequences) // 2)
        after = build_row([one.without_prefix(shared) for one in sequences])
        try:
            return self._score_together([after], sequences[0].input_ids[:shared])
        finally:
            self._cache = None

    def _cached(self, prefix: tuple[int, ...]) -> PrefixCache:
        """The keys and values of `prefix`, computed unless it is the prefix that is cached."""
        if self._cache is None or self._cache.token_ids != prefix:
            self._cache = None  # frees its memory: one prefix at a time
            cache = PrefixCache(prefix)
            alone = build_row([TokenSequence(prefix, prefix[-1:], (0, 0))])
            with cache.recording():
                self._hidden(model_inputs([alone], self.device))
            if cache.calls < self._layers:
                raise RuntimeError("not all layers call torch's attention")
            self._cache = cache
        return self._cache

    @property
    def _layers(self) -> int:
        config = self.model.config
        return int((getattr(config, "text_config", None) or config).num_hidden_layers)

    def _hidden(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
        """The body's output [B, T, D]; logits [B, 1, V] where only the whole model may be called."""
        if self.whole_model:
            return self.model(**given, use_cache=False, logits_to_keep=1).logits
        return self.model.base_model(**given, use_cache=False, return_dict=True).last_hidden_state


def make_sums_reproducible() -> None:
    """Have MKL sum in one order on any number of threads; call it before the first matrix product.

    The more ranks a host has, the fewer threads each gets, and MKL splits long sums among its threads: sums
    of 3,072 numbers, for up to 384 tokens. Measured, its strict mode costs 4%.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # MKL reads it once


def _small_and_branching(place: tuple[Row, tuple[int, ...]]) -> tuple[bool, int, tuple[int, int]]:
    """Sort key: rows that branch first, short ones first."""
    row, _ = place
    return not row.branches, len(row), row.readouts[0].key
