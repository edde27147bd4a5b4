"""Who computes what: examples to rows, rows to batches, batches to ranks. Pure; the same on every rank.

Batches are formed before anyone asks how many ranks there are, and go to ranks whole. So each example is
computed on one rank, in the same company and hence to the same bits, whatever the number of ranks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gaguide.evaluate.schedule.prefixes import families
from gaguide.evaluate.schedule.rows import Row, TokenSequence, added_tokens, build_row, shared_length

_LEAST_BATCHES = 32
"""An evaluation is cut into at least about so many batches, so that there is work for several ranks …"""
_LEAST_TOKENS = 512
"""… unless they would become smaller than this."""
_PASS_SHARE = 8
"""A pass costs at least what this part of a full batch does, however few its tokens are."""
_LEAST_PREFIX = 32
"""Shorter prefixes are not kept: they cost a row little."""
_COPIED = 1000.0
"""Floating-point operations in the time of copying one number of a kept prefix; alike on CPUs and GPUs."""


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

    def row(self, tokens: int, kept: int = 0) -> float:
        """The body over one row; attention with a mask computes every pair of its tokens.

        kept: tokens before the row whose keys and values are kept; a row gets a copy of them.
        """
        work = tokens * (24.0 * self.width**2 + 4.0 * self.width * (tokens + kept))
        return self.layers * (work + _COPIED * self.width * kept)

    def logits(self, positions: int) -> float:
        """The output layer at `positions` positions."""
        return 2.0 * self.width * self.vocabulary * positions

    def longest_row(self, shared: int, kept: int = 0) -> int:
        """Tokens to which a row of sequences with `shared` common tokens may grow, behind `kept` ones.

        A longer row spreads the prefix over more sequences, but each token then looks over more strangers;
        the least cost per sequence is where another sequence costs as much as the average one so far.
        """
        # Both counted in tokens looked at: a token's own cost, and a row's.
        own, once = 24.0 * self.width / 4.0 + kept, _COPIED * kept / 4.0
        return shared + int(math.sqrt(shared**2 + own * shared + once))


@dataclass(frozen=True)
class Batch:
    """Rows computed in one forward pass, padded on the right to the longest; holds whole examples.

    generates: the rows are prompts that are to be continued. prefix: tokens before every row, whose keys and
    values are computed, at `prefix_cost`, once on each rank that has such batches.
    """

    rows: tuple[Row, ...]
    cost: float
    generates: bool = False
    prefix: tuple[int, ...] = ()
    prefix_cost: float = 0.0

    @property
    def examples(self) -> frozenset[int]:
        """The examples whose scores this batch gives."""
        return frozenset(read.key[0] for row in self.rows for read in row.reads)


def make_batches(examples: Sequence[Sequence[TokenSequence]], budget: Budget, cost: CostModel) -> list[Batch]:
    """Batches within `budget`; those of one kept prefix together, of these the longest rows first.

    `examples[i]` are the sequences of one example. An example whose rows exceed `budget` is a batch by
    itself.
    """
    found = families(examples, partial(_saved_tokens, budget=budget, cost=cost))
    groups = []
    for family in found:
        behind = [[one.behind(family.shared) for one in sequences] for sequences in family.examples]
        groups.append(_group(behind, family.shared, budget.longest, cost))
    total = sum(len(row) for rows_by_group in groups for rows in rows_by_group for row in rows)
    most = min(budget.batch, max(_LEAST_TOKENS, total // _LEAST_BATCHES))
    batches: list[Batch] = []
    for family, rows_by_group in zip(found, groups, strict=True):
        prefix = family.examples[0][0].input_ids[: family.shared] if family.shared else ()
        batches += _pack(rows_by_group, prefix, most, cost)
    return batches


def _saved_tokens(count: int, tokens: int, shared: int, budget: Budget, cost: CostModel) -> float:
    """What keeping `shared` tokens saves, beside computing them once in each row; for `families`."""
    if shared < _LEAST_PREFIX:
        return 0.0
    room = min(cost.longest_row(shared), budget.longest) - shared
    rows = min(count, -(-tokens // room)) if room > 0 else count
    return (rows - 1) * shared - budget.batch / _PASS_SHARE


def _pack(groups: list[list[Row]], prefix: tuple[int, ...], most: int, cost: CostModel) -> list[Batch]:
    """Batches of up to `most` padded tokens, longest rows first."""
    groups = sorted(groups, key=lambda rows: (-max(map(len, rows)), rows[0].reads[0].key))
    batches: list[Batch] = []
    rows: list[Row] = []
    for group in groups:
        longest = max(map(len, rows + group))
        if rows and (len(rows) + len(group)) * longest > most:
            batches.append(_batch(rows, prefix, cost))
            rows = []
        rows = rows + group
    if rows:
        batches.append(_batch(rows, prefix, cost))
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
    """Batch numbers of each rank; the dearest are given out first, each to the rank that is then done first.

    A rank's batches of one prefix follow one another, so that it holds one prefix at a time.
    """
    busy = [0.0] * ranks
    anyone = [(0.0, rank) for rank in range(ranks)]
    holders: dict[tuple[int, ...], list[tuple[float, int]]] = {}
    given: list[dict[tuple[int, ...], list[int]]] = [{} for _ in range(ranks)]
    for at in sorted(range(len(batches)), key=lambda at: (-batches[at].cost, at)):
        batch = batches[at]
        holding = holders.setdefault(batch.prefix, [])
        until, rank = _idlest(anyone, busy)
        until += batch.prefix_cost
        if holding and _idlest(holding, busy)[0] <= until:
            until, rank = _idlest(holding, busy)
        busy[rank] = until + batch.cost
        if batch.prefix not in given[rank]:
            heapq.heappush(holding, (busy[rank], rank))
        given[rank].setdefault(batch.prefix, []).append(at)
    return [[at for part in by_prefix.values() for at in part] for by_prefix in given]


def _idlest(heap: list[tuple[float, int]], busy: Sequence[float]) -> tuple[float, int]:
    """The least (busy until, rank) of a heap whose times may be older than those of `busy`."""
    while heap[0][0] < busy[heap[0][1]]:
        heapq.heapreplace(heap, (busy[heap[0][1]], heap[0][1]))
    return heap[0]


def _batch(rows: Sequence[Row], prefix: tuple[int, ...], cost: CostModel) -> Batch:
    longest = max(map(len, rows))
    body = len(rows) * cost.row(longest, len(prefix))
    logits = cost.logits(sum(row.scored for row in rows))
    return Batch(tuple(rows), body + logits, prefix=prefix, prefix_cost=cost.row(len(prefix)))


def _group(
    examples: Sequence[Sequence[TokenSequence]], kept: int, longest: int, cost: CostModel
) -> list[list[Row]]:
    """Rows by group; a group is one example and its duplicates, or several that share enough for one row.

    kept: tokens before all of them whose keys and values are kept.
    """
    groups: list[list[Row]] = []
    held: list[TokenSequence] = []  # the row being filled, from one or more examples
    tokens = 0
    for sequences in _duplicates_together(examples):
        rows = _rows_of(sequences, kept, cost)
        if len(rows) > 1:
            groups.append([build_row(row) for row in rows])
            continue
        alone = added_tokens((), sequences)
        if held:
            added = added_tokens(held[-1].input_ids, sequences)
            limit = cost.longest_row(shared_length(held[0].input_ids, sequences[-1].input_ids), kept)
            apart = cost.row(tokens, kept) + cost.row(alone, kept)
            if tokens + added <= min(limit, longest) and cost.row(tokens + added, kept) < apart:
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


def _rows_of(sequences: Sequence[TokenSequence], kept: int, cost: CostModel) -> list[list[TokenSequence]]:
    """Sorted sequences, put together where that is cheaper than apart."""
    rows: list[list[TokenSequence]] = []
    tokens = 0
    for sequence in sequences:
        length = len(sequence.input_ids)
        if rows:
            added = length - shared_length(rows[-1][-1].input_ids, sequence.input_ids)
            if cost.row(tokens + added, kept) < cost.row(tokens, kept) + cost.row(length, kept):
                rows[-1].append(sequence)
                tokens += added
                continue
        rows.append([sequence])
        tokens = length
    return rows
