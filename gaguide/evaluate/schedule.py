"""Who computes what: examples to rows, rows to batches, batches to ranks. Pure; the same on every rank.

Batches are formed before anyone asks how many ranks there are, and go to ranks whole. So each example is
computed on one rank, in the same company and hence to the same bits, whatever the number of ranks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gaguide.evaluate.rows import Row, TokenSequence, added_tokens, build_row, shared_length

_LEAST_BATCHES = 32
"""An evaluation is cut into at least about so many batches, so that there is work for several ranks …"""
_LEAST_TOKENS = 512
"""… unless they would become smaller than this."""


@dataclass(frozen=True)
class Budget:
    """Padded tokens. `batch`: of rows that are put together; `row`: to which a row may grow by sharing its
    prefix, where that is more."""

    batch: int
    row: int = 0

    @classmethod
    def of(cls, batch_tokens: int | None, device_type: str) -> Budget:
        """What was asked for, or what suits the device."""
        if batch_tokens is not None:
            return cls(batch_tokens)
        # On a CPU larger activations are fetched anew from the kernel at every layer: measured, half as fast.
        return cls(16_384) if device_type == "cuda" else cls(512, 2_048)

    @property
    def longest(self) -> int:
        """Tokens of the longest row that holds more than one example."""
        return max(self.batch, self.row)


@dataclass(frozen=True)
class CostModel:
    """Predicted floating-point operations of a forward pass over rows of a model of this shape."""

    layers: int
    width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> CostModel:
        """Of a model with this configuration of transformers."""
        config = getattr(config, "text_config", None) or config
        return cls(config.num_hidden_layers, config.hidden_size, config.vocab_size)

    def row(self, tokens: int) -> float:
        """The body over one row; attention with a mask computes every pair of its tokens."""
        return self.layers * tokens * (24.0 * self.width**2 + 4.0 * self.width * tokens)

    def logits(self, positions: int) -> float:
        """The output layer at `positions` positions."""
        return 2.0 * self.width * self.vocabulary * positions

    def longest_row(self, shared: int) -> int:
        """Tokens to which a row of sequences with `shared` common tokens may grow.

        A longer row spreads the prefix over more sequences, but each token then looks over more strangers;
        the least cost per sequence is where another sequence costs as much as the average one so far.
        """
        linear = 24.0 * self.width / 4.0  # the linear layers' cost of a token, counted in tokens looked at
        return shared + int(math.sqrt(linear * shared + shared**2))


@dataclass(frozen=True)
class Batch:
    """Rows computed in one forward pass, padded on the right to the longest; holds whole examples.

    generates: the rows are prompts that are to be continued.
    """

    rows: tuple[Row, ...]
    cost: float
    generates: bool = False

    @property
    def examples(self) -> frozenset[int]:
        """The examples whose scores this batch gives."""
        return frozenset(read.key[0] for row in self.rows for read in row.reads)


def make_batches(examples: Sequence[Sequence[TokenSequence]], budget: Budget, cost: CostModel) -> list[Batch]:
    """Batches within `budget`, longest rows first.

    `examples[i]` are the sequences of one example. An example whose rows exceed `budget` is a batch by
    itself.
    """
    groups = _group(examples, budget.longest, cost)
    total = sum(len(row) for rows in groups for row in rows)
    most = min(budget.batch, max(_LEAST_TOKENS, total // _LEAST_BATCHES))
    groups.sort(key=lambda rows: (-max(map(len, rows)), rows[0].reads[0].key))
    batches: list[Batch] = []
    rows: list[Row] = []
    for group in groups:
        longest = max(map(len, rows + group))
        if rows and (len(rows) + len(group)) * longest > most:
            batches.append(_batch(rows, cost))
            rows = []
        rows = rows + group
    if rows:
        batches.append(_batch(rows, cost))
    return batches


def make_prompt_batches(prompts: Sequence[Row], budget: Budget, cost: CostModel) -> list[Batch]:
    """Batches of prompts to continue, longest first."""
    batches: list[Batch] = []
    rows: list[Row] = []
    for row in sorted(prompts, key=lambda row: (-len(row), row.reads[0].key)):
        if rows and (len(rows) + 1) * (len(rows[0]) + len(row.reads)) > budget.longest:
            batches.append(_prompt_batch(rows, cost))
            rows = []
        rows.append(row)
    return [*batches, _prompt_batch(rows, cost)] if rows else batches


def _prompt_batch(rows: Sequence[Row], cost: CostModel) -> Batch:
    steps = max(len(row.reads) for row in rows)
    whole = len(rows) * (cost.row(len(rows[0])) + steps * cost.row(1)) + cost.logits(len(rows) * steps)
    return Batch(tuple(rows), whole, generates=True)


def assign(batches: Sequence[Batch], ranks: int) -> list[list[int]]:
    """Batch numbers of each rank, dearest first; each batch goes to the rank that is to be free first."""
    free = [(0.0, rank) for rank in range(ranks)]
    given: list[list[int]] = [[] for _ in range(ranks)]
    for at in sorted(range(len(batches)), key=lambda at: (-batches[at].cost, at)):
        busy_until, rank = heapq.heappop(free)
        given[rank].append(at)
        heapq.heappush(free, (busy_until + batches[at].cost, rank))
    return given


def _batch(rows: Sequence[Row], cost: CostModel) -> Batch:
    longest = max(map(len, rows))
    body = len(rows) * cost.row(longest)
    return Batch(tuple(rows), body + cost.logits(sum(row.scored for row in rows)))


def _group(examples: Sequence[Sequence[TokenSequence]], longest: int, cost: CostModel) -> list[list[Row]]:
    """Rows by group; a group is one example and its duplicates, or several that share enough for one row."""
    groups: list[list[Row]] = []
    held: list[TokenSequence] = []  # the row being filled, from one or more examples
    tokens = 0
    for sequences in _duplicates_together(examples):
        rows = _rows_of(sequences, cost)
        if len(rows) > 1:
            groups.append([build_row(row) for row in rows])
            continue
        alone = added_tokens((), sequences)
        if held:
            added = added_tokens(held[-1].input_ids, sequences)
            limit = cost.longest_row(shared_length(held[0].input_ids, sequences[-1].input_ids))
            fits = tokens + added <= min(limit, longest)
            if fits and cost.row(tokens + added) < cost.row(tokens) + cost.row(alone):
                held, tokens = held + sequences, tokens + added
                continue
            groups.append([build_row(held)])
        held, tokens = list(sequences), alone
    if held:
        groups.append([build_row(held)])
    return groups


def _duplicates_together(examples: Sequence[Sequence[TokenSequence]]) -> list[list[TokenSequence]]:
    """The sorted sequences of each example, in order; those of equal examples as if they were one."""
    equal: dict[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], list[TokenSequence]] = {}
    for sequences in map(sorted, examples):
        equal.setdefault(tuple((one.input_ids, one.target_ids) for one in sequences), []).extend(sequences)
    return sorted(map(sorted, equal.values()), key=lambda sequences: sequences[0])


def _rows_of(sequences: Sequence[TokenSequence], cost: CostModel) -> list[list[TokenSequence]]:
    """Sorted sequences, put together where that is cheaper than apart."""
    rows: list[list[TokenSequence]] = []
    tokens = 0
    for sequence in sequences:
        length = len(sequence.input_ids)
        if rows:
            added = length - shared_length(rows[-1][-1].input_ids, sequence.input_ids)
            if cost.row(tokens + added) < cost.row(tokens) + cost.row(length):
                rows[-1].append(sequence)
                tokens += added
                continue
        rows.append([sequence])
        tokens = length
    return rows
