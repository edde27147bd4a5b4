"""Log-probabilities of the scored tokens of rows, by one forward pass over each batch.

What a model takes is found out on a small row: where its attention cannot be given keys and values that were
kept, prefixes are computed in each batch, and where it cannot take rows with branches (attention that does
not follow the mask, an output that is more than a linear layer), sequences are computed separately.
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
from gaguide.evaluate.score.causal import WORTH_TOKENS, causal_beginning
from gaguide.evaluate.score.generate import generate
from gaguide.evaluate.score.logits import LEAST_ROWS, LOGIT_POSITIONS, Scores, flat_reads, inputs, read_scores
from gaguide.evaluate.score.prefix_cache import KeptPrefix

_MERGED_TOKENS = 2_048
"""A prefix that cannot be kept is computed once for so many tokens behind it: each looks over all others."""
_CHECKED_PREFIX = 16
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.25


class Sharing(enum.IntEnum):
    """What is computed once: nothing, prefixes within a row, or also the prefix of many batches."""

    NOTHING = 0
    ROWS = 1
    PREFIXES = 2


@dataclass
class Scorer:
    """Scores batches of rows with a model in eval mode on `device`.

    whole: call the model only as a whole, as ZeRO-3 needs it, where also all ranks must call it equally
    often: `passes` counts, `idle` fills up, and nothing is halved. causal_tokens: see `causal_beginning`.
    """

    model: Any
    device: torch.device
    shares: Sharing = Sharing.PREFIXES
    say: Callable[[str], None] = print
    whole: bool = False
    causal_tokens: int = WORTH_TOKENS
    _kept: KeptPrefix | None = field(default=None, init=False)

    def score(self, rows: Sequence[Row], prefix: tuple[int, ...] = ()) -> Scores:
        """Scores of all reads of `rows`, which stand behind `prefix`.

        Rows that do not fit into memory are halved, which is said.
        """
        if prefix and self.shares < Sharing.PREFIXES:
            rows, prefix = _with_prefix(rows, prefix), ()
        if not prefix:
            self._kept = None  # give its memory back
        return self._halving(rows, partial(self._together, prefix=prefix) if self.shares else self._separate)

    def passes(self, batches: Sequence[Batch]) -> int:
        """How often `score` calls the model for these batches, one after the other, if no prefix is held."""
        if not self.shares:
            rows = [_with_prefix(one.rows, one.prefix) for one in batches]
            return sum(map(len, map(_portions, rows)))
        if self.shares < Sharing.PREFIXES:
            return len(batches)
        prefixes = [(), *(batch.prefix for batch in batches)]
        return len(batches) + sum(bool(one) and one != before for before, one in pairwise(prefixes))

    @torch.no_grad()
    def idle(self) -> None:
        """A pass that counts for nothing."""
        self.model(
            input_ids=torch.zeros(1, LEAST_ROWS, dtype=torch.long, device=self.device), use_cache=False
        )

    def generate(self, rows: Sequence[Row]) -> Scores:
        """Ids of the tokens that continue each row, in place of scores."""
        self._kept = None
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

    def check(self, batches: Sequence[Batch]) -> float:
        """Largest difference between shared and separate computation of a small row.

        One with branches, if there is any: others ask less of the model. Sets `shares` to what the model
        takes: to less where the difference is beyond the tolerance of its dtype, where it does not take such
        inputs at all, or where a row is deeper than its sliding window.
        """
        rows = [(row, batch.prefix) for batch in batches if not batch.generates for row in batch.rows]
        if not rows:
            return 0.0
        window = getattr(self.model.config, "sliding_window", None)
        if window and max(max(row.depths) + len(prefix) for row, prefix in rows) >= window:
            self.shares = Sharing.NOTHING
            return math.inf
        shared = min(rows, key=_ease)
        kept = min((one for one in rows if one[1]), key=_ease, default=None)
        self.shares = Sharing.PREFIXES
        if kept is not None:
            difference = self._difference(self._behind_prefix, *kept)
            if not self._tolerates(difference):
                self.shares = Sharing.ROWS
                if not shared[0].branches:
                    shared = _that_branches(batches) or shared
            elif kept[0].branches or not shared[0].branches:
                return difference  # nothing else is asked of the model
        # So that the causal way, which a short prefix would not be worth, is checked too.
        way = replace(self, causal_tokens=_CHECKED_PREFIX // 2)._together
        difference = self._difference(lambda row: way([row]), *shared)
        if not self._tolerates(difference):
            self.shares = Sharing.NOTHING
        return difference

    def _tolerates(self, difference: float) -> bool:
        # A NaN on both sides is the model's own doing and no reason to compute it twice.
        return not difference > _TOLERANCE.get(self.model.dtype, _HALF_TOLERANCE)

    def _difference(self, way: Callable[[Row], Scores], row: Row, prefix: tuple[int, ...]) -> float:
        """Between a way of computing and the separate one; infinite where the model does not take it."""
        part = _small_part(row, prefix)
        try:
            with self._no_gradients():
                shared, separate = way(part), self._separate([part])
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            if out_of_memory(error):
                raise
            return math.inf
        return max(abs(shared[key] - separate[key]) for key in shared)

    def _behind_prefix(self, row: Row) -> Scores:
        """Half of what its sequences share kept, the rest behind it."""
        sequences = _sequences([row])
        shared = max(1, longest_prefix(sequences) // 2)
        behind = build_row([one.behind(shared) for one in sequences])
        try:
            return self._together([behind], sequences[0].input_ids[:shared])
        finally:
            self._kept = None

    def _keep(self, prefix: tuple[int, ...]) -> KeptPrefix:
        """The keys and values of `prefix`, computed unless they are the ones that are held."""
        if self._kept is None or self._kept.token_ids != prefix:
            self._kept = None  # one at a time
            kept = KeptPrefix(prefix)
            alone = build_row([TokenSequence(prefix, prefix[-1:], (0, 0))])
            with kept.recorded():
                self._hidden(inputs([alone], self.device))
            if kept.calls < self._layers:
                raise RuntimeError("not all layers call torch's attention")
            self._kept = kept
        return self._kept

    @property
    def _layers(self) -> int:
        config = self.model.config
        return int((getattr(config, "text_config", None) or config).num_hidden_layers)

    def _hidden(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
        """The body's output [B, T, D]; of the whole model, if need be, logits [B, 1, V]."""
        if self.whole:
            return self.model(**given, use_cache=False, logits_to_keep=1).logits
        return self.model.base_model(**given, use_cache=False, return_dict=True).last_hidden_state

    def _together(self, rows: Sequence[Row], prefix: tuple[int, ...] = ()) -> Scores:
        """Rows as they are by one pass; and one before it for a prefix that is not held."""
        given = inputs(rows, self.device, self.model.dtype, len(prefix))
        flat, reads = flat_reads(rows, given["input_ids"].shape[1])
        with (
            self._keep(prefix).before(given["attention_mask"])
            if prefix
            else causal_beginning(rows, given.get("attention_mask"), self.causal_tokens)
        ):
            if self.whole:
                wanted_BT = torch.zeros(given["input_ids"].shape, dtype=torch.bool)
                wanted_BT.view(-1)[flat] = True
                wanted_BT = wanted_BT.to(self.device)
                logits_NV = self.model(**given, use_cache=False, logits_to_keep=wanted_BT).logits
            else:
                hidden_BTD = self._hidden(given)
        if self.whole:
            return read_scores(logits_NV, torch.nn.Identity(), reads)
        hidden_ND = hidden_BTD.flatten(0, 1)[flat.to(self.device)]
        return read_scores(hidden_ND, self.model.get_output_embeddings(), reads)

    def _separate(self, rows: Sequence[Row]) -> Scores:
        """Each sequence as a row of its own, through the whole model; right for any causal model."""
        scores: Scores = {}
        for some in _portions(rows):
            logits_BTV = self.model(**inputs(some, self.device, self.model.dtype), use_cache=False).logits
            flat, reads = flat_reads(some, logits_BTV.shape[1])
            scores |= read_scores(logits_BTV.flatten(0, 1)[flat.to(self.device)], torch.nn.Identity(), reads)
        return scores


def sum_in_one_order() -> None:
    """Have MKL add up in one order for any number of threads; call it before the first matrix product.

    Ranks of one host have fewer threads the more they are, and MKL splits long sums among its threads: of
    3,072 numbers for up to 384 tokens. Measured, its strict mode costs 4%.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # MKL reads it once


def _sequences(rows: Sequence[Row], prefix: tuple[int, ...] = ()) -> list[TokenSequence]:
    """All sequences of `rows`, which stand behind `prefix`."""
    return [
        TokenSequence((*prefix, *row.sequence(read)), read.target_ids, read.key)
        for row in rows
        for read in row.reads
    ]


def _with_prefix(rows: Sequence[Row], prefix: tuple[int, ...]) -> list[Row]:
    """Rows that hold their `prefix`, each for as many of `rows` as have `_MERGED_TOKENS`."""
    if not prefix:
        return list(rows)
    merged: list[list[Row]] = []
    tokens = 0
    for row in rows:
        if not merged or tokens + len(row) > _MERGED_TOKENS:
            merged.append([])
            tokens = 0
        merged[-1].append(row)
        tokens += len(row)
    return [build_row(_sequences(some, prefix)) for some in merged]


def _that_branches(batches: Sequence[Batch]) -> tuple[Row, tuple[int, ...]] | None:
    """Two rows that do not branch do once they are put together behind their prefix."""
    pairs = ((batch.rows[-2:], batch.prefix) for batch in batches if batch.prefix)
    merged = (_with_prefix(*pair) for pair in pairs if len(pair[0]) > 1)
    return next(((row, ()) for row, *_ in merged if row.branches), None)


def _ease(place: tuple[Row, tuple[int, ...]]) -> tuple[bool, int, tuple[int, int]]:
    row, _ = place
    return not row.branches, len(row), row.reads[0].key


def _small_part(row: Row, prefix: tuple[int, ...]) -> Row:
    """Two or three sequences of a row, without most of what they share: a check need not be costly."""
    first, last = row.reads[0], row.reads[-1]
    beside = (read for read in row.reads if row.ends[read.positions[-1]] != len(row))
    few = {first, next(beside, first), last}
    sequences = sorted(one for one in _sequences([row], prefix) if one.key in {read.key for read in few})
    cut = max(0, longest_prefix(sequences) - _CHECKED_PREFIX)
    return build_row([one.behind(cut) for one in sequences])


def _portions(rows: Sequence[Row]) -> list[list[Row]]:
    """The sequences of `rows` as rows of their own, longest first, so many at a time as logits may exist."""
    alone = [build_row([sequence]) for sequence in _sequences(rows)]
    alone.sort(key=len)
    portions = []
    while alone:
        count = max(1, min(len(alone), LOGIT_POSITIONS // len(alone[-1])))
        portions.append(alone[-count:])
        alone = alone[:-count]
    return portions
