"""The sequences of rows in other rows: with their prefix, separately, or only a few of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gaguide.evaluate.schedule.batches import Batch
from gaguide.evaluate.schedule.rows import Row, TokenSequence, build_row, longest_prefix

_MERGED_TOKENS = 2_048
"""A prefix that cannot be cached is computed once per this many tokens after it, since each token attends
over all others of its row."""


def row_sequences(rows: Sequence[Row], prefix: tuple[int, ...] = ()) -> list[TokenSequence]:
    """All sequences of `rows`, each beginning with `prefix`."""
    return [
        TokenSequence((*prefix, *row.sequence(readout)), readout.target_ids, readout.key, readout.greedy)
        for row in rows
        for readout in row.readouts
    ]


def rows_with_prefix(rows: Sequence[Row], prefix: tuple[int, ...]) -> list[Row]:
    """Rows that contain their `prefix`, each merging `rows` up to `_MERGED_TOKENS` tokens."""
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
    return [build_row(row_sequences(some, prefix)) for some in merged]


def separate_rows(rows: Sequence[Row], max_positions: int) -> list[list[Row]]:
    """The sequences of `rows`, each as its own row, longest first, in lists of up to `max_positions` padded
    tokens.

    A row without branches, one sequence and its prefixes, stays as it is: any causal model computes it so.
    """
    alone = [row for row in rows if not row.branches]
    branching = [row for row in rows if row.branches]
    alone += [build_row([sequence]) for sequence in row_sequences(branching)]
    alone.sort(key=len)
    portions = []
    while alone:
        count = max(1, min(len(alone), max_positions // len(alone[-1])))
        portions.append(alone[-count:])
        alone = alone[:-count]
    return portions


def sample_row(row: Row, prefix: tuple[int, ...], common_tokens: int) -> Row:
    """Two or three sequences of a row, with at most `common_tokens` of their common tokens."""
    first, last = row.readouts[0], row.readouts[-1]
    branching = (readout for readout in row.readouts if row.ends[readout.positions[-1]] != len(row))
    keys = {readout.key for readout in (first, next(branching, first), last)}
    sequences = sorted(replace(one, greedy=False) for one in row_sequences([row], prefix) if one.key in keys)
    cut = max(0, longest_prefix(sequences) - common_tokens)
    return build_row([one.without_prefix(cut) for one in sequences])


def first_merged_branch(batches: Sequence[Batch]) -> Row | None:
    """A row that branches, made of two that do not by putting them together after their prefix."""
    pairs = ((batch.rows[-2:], batch.prefix) for batch in batches if batch.prefix)
    merged = (rows_with_prefix(*pair) for pair in pairs if len(pair[0]) > 1)
    return next((row for row, *_ in merged if row.branches), None)
