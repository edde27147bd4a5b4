"""Examples to rows, and rows to batches. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from gaguide.evaluate.schedule.cost import Budget, CostModel
from gaguide.evaluate.schedule.prefixes import group_by_prefix
from gaguide.evaluate.schedule.rows import Row, TokenSequence, added_tokens, build_row, shared_length

_MIN_BATCHES = 32
"""An evaluation is divided into about this many batches or more, so that several ranks have work …"""
_MIN_TOKENS = 512
"""… unless batches would become smaller than this."""
_PASS_SHARE = 8
"""A pass costs at least as much as this fraction (1/8) of a full batch, however few tokens it has."""
_MIN_PREFIX = 32
"""Shorter prefixes are not cached: they cost a row little."""


@dataclass(frozen=True)
class Batch:
    """Rows computed in one forward pass, padded on the right to the longest; holds whole examples."""

    rows: tuple[Row, ...]
    """The rows."""
    cost: float
    """Predicted cost of the pass."""
    generates: bool = False
    """Whether the rows are prompts to continue."""
    prefix: tuple[int, ...] = ()
    """Tokens before every row, whose keys and values are cached."""
    prefix_cost: float = 0.0
    """Cost of computing the prefix, once on each rank that has batches with it."""

    @property
    def examples(self) -> frozenset[int]:
        """Numbers of the examples that this batch scores."""
        return frozenset(readout.key[0] for row in self.rows for readout in row.readouts)


def make_batches(examples: Sequence[Sequence[TokenSequence]], budget: Budget, cost: CostModel) -> list[Batch]:
    """Batches within `budget`; those with the same prefix are consecutive, the longest rows first.

    `examples[i]` are the sequences of one example. An example whose rows exceed `budget` gets its own batch.
    """
    prefix_groups = group_by_prefix(examples, partial(_saved_tokens, budget=budget, cost=cost))
    row_groups = []
    for group in prefix_groups:
        after = [[one.without_prefix(group.shared) for one in sequences] for sequences in group.examples]
        row_groups.append(_group_rows(after, group.shared, budget.longest, cost))
    total = sum(len(row) for groups in row_groups for rows in groups for row in rows)
    most = min(budget.batch, max(_MIN_TOKENS, total // _MIN_BATCHES))
    batches: list[Batch] = []
    for group, groups in zip(prefix_groups, row_groups, strict=True):
        prefix = group.examples[0][0].input_ids[: group.shared] if group.shared else ()
        batches += _pack(groups, prefix, most, cost)
    return batches


def make_prompt_batches(prompts: Sequence[Row], budget: Budget, cost: CostModel) -> list[Batch]:
    """Batches of prompts to continue, longest first."""
    batches: list[Batch] = []
    rows: list[Row] = []
    for row in sorted(prompts, key=lambda row: (-len(row), row.readouts[0].key)):
        if rows and (len(rows) + 1) * (len(rows[0]) + len(row.readouts)) > budget.longest:
            batches.append(_prompt_batch(rows, cost))
            rows = []
        rows.append(row)
    return [*batches, _prompt_batch(rows, cost)] if rows else batches


def _saved_tokens(count: int, tokens: int, shared: int, budget: Budget, cost: CostModel) -> float:
    """Tokens saved by caching `shared` tokens, compared with computing them once in each row."""
    if shared < _MIN_PREFIX:
        return 0.0
    room = min(cost.longest_row(shared), budget.longest) - shared
    rows = min(count, -(-tokens // room)) if room > 0 else count
    return (rows - 1) * shared - budget.batch / _PASS_SHARE


def _pack(groups: list[list[Row]], prefix: tuple[int, ...], most: int, cost: CostModel) -> list[Batch]:
    """Batches of up to `most` padded tokens, longest rows first."""
    groups = sorted(groups, key=lambda rows: (-max(map(len, rows)), rows[0].readouts[0].key))
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


def _batch(rows: Sequence[Row], prefix: tuple[int, ...], cost: CostModel) -> Batch:
    longest = max(map(len, rows))
    body = len(rows) * cost.row(longest, len(prefix))
    logits = cost.logits(sum(row.scored for row in rows))
    return Batch(tuple(rows), body + logits, prefix=prefix, prefix_cost=cost.row(len(prefix)))


def _prompt_batch(rows: Sequence[Row], cost: CostModel) -> Batch:
    steps = max(len(row.readouts) for row in rows)
    whole = len(rows) * (cost.row(len(rows[0])) + steps * cost.row(1)) + cost.logits(len(rows) * steps)
    return Batch(tuple(rows), whole, generates=True)


def _group_rows(
    examples: Sequence[Sequence[TokenSequence]], cached: int, longest: int, cost: CostModel
) -> list[list[Row]]:
    """Rows by group; a group is one example with its duplicates, or several that share enough for one row.

    cached: tokens before all of them whose keys and values are cached.
    """
    groups: list[list[Row]] = []
    filling: list[TokenSequence] = []  # the row being filled, from one or more examples
    tokens = 0
    for sequences in _merge_duplicates(examples):
        rows = _split_into_rows(sequences, cached, cost)
        if len(rows) > 1:
            groups.append([build_row(row) for row in rows])
            continue
        alone = added_tokens((), sequences)
        if filling:
            added = added_tokens(filling[-1].input_ids, sequences)
            limit = cost.longest_row(shared_length(filling[0].input_ids, sequences[-1].input_ids), cached)
            separate = cost.row(tokens, cached) + cost.row(alone, cached)
            if tokens + added <= min(limit, longest) and cost.row(tokens + added, cached) < separate:
                filling, tokens = filling + sequences, tokens + added
                continue
            groups.append([build_row(filling)])
        filling, tokens = list(sequences), alone
    if filling:
        groups.append([build_row(filling)])
    return groups


def _merge_duplicates(examples: Sequence[Sequence[TokenSequence]]) -> list[list[TokenSequence]]:
    """The sorted sequences of each example, in order; equal examples become one."""
    equal: dict[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], list[TokenSequence]] = {}
    for sequences in map(sorted, examples):
        equal.setdefault(tuple((one.input_ids, one.target_ids) for one in sequences), []).extend(sequences)
    return sorted(map(sorted, equal.values()), key=lambda sequences: sequences[0])


def _split_into_rows(
    sequences: Sequence[TokenSequence], cached: int, cost: CostModel
) -> list[list[TokenSequence]]:
    """Sorted sequences by row: together where that is cheaper than separately."""
    rows: list[list[TokenSequence]] = []
    tokens = 0
    for sequence in sequences:
        length = len(sequence.input_ids)
        if rows:
            added = length - shared_length(rows[-1][-1].input_ids, sequence.input_ids)
            if cost.row(tokens + added, cached) < cost.row(tokens, cached) + cost.row(length, cached):
                rows[-1].append(sequence)
                tokens += added
                continue
        rows.append([sequence])
        tokens = length
    return rows
