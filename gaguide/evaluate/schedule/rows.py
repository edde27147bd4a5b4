"""Rows: token sequences that share prefixes, laid out so that every shared prefix is computed once.

Several sequences form a prefix tree; a row holds that tree's tokens in depth-first order. A token attends to
its ancestors only, and its position is its depth, so each sequence is computed as if it were alone. With
`ends[k]`, the row position just after the subtree of token k, the attention mask is

    token q attends to token k   if and only if   k <= q < ends[k]

Continuations of one prompt, demonstrations shared by many examples, and duplicates are all this one case.
A row of one sequence is an ordinary causal row. Legend: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, order=True)
class TokenSequence:
    """Input and targets of one score. Sequences sort by tokens, so that equal prefixes are neighbours."""

    input_ids: tuple[int, ...]
    """The model's input."""
    target_ids: tuple[int, ...]
    """The scored tokens, predicted at the last len(target_ids) input positions."""
    key: tuple[int, int]
    """(example, pair)."""
    greedy: bool = False
    """Whether the score is 1 or 0 (each target is the most probable token, or not) instead."""

    def without_prefix(self, count: int) -> TokenSequence:
        """The sequence without its first `count` tokens, at none of which a score is read."""
        return replace(self, input_ids=self.input_ids[count:])


@dataclass(frozen=True)
class Readout:
    """Where one score is read from a row."""

    key: tuple[int, int]
    """(example, pair)."""
    positions: tuple[int, ...]
    """Row positions; `positions[i]` predicts `target_ids[i]`."""
    target_ids: tuple[int, ...]
    """The scored tokens."""
    greedy: bool = False
    """See `TokenSequence.greedy`."""


@dataclass(frozen=True)
class Row:
    """A prefix tree of T tokens, depth first."""

    token_ids: tuple[int, ...]
    """[T] token ids."""
    depths: tuple[int, ...]
    """[T] depths in the tree, which are the model's positions."""
    ends: tuple[int, ...]
    """[T] row positions just after each token's subtree."""
    readouts: tuple[Readout, ...]
    """The scores that are read from the row."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def branches(self) -> bool:
        """Whether the row needs its own mask, because it is more than one sequence and its prefixes."""
        return any(end != len(self) for end in self.ends)

    @property
    def scored(self) -> int:
        """Number of positions that need logits."""
        return len({at for readout in self.readouts for at in readout.positions})

    def sequence(self, readout: Readout) -> tuple[int, ...]:
        """The input ids that one readout depends on, in order."""
        last = readout.positions[-1]
        return tuple(self.token_ids[at] for at in range(last + 1) if last < self.ends[at])


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    low, high = 0, shortest  # prompts are long and mostly equal: bisection compares slices at C speed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def build_row(sequences: Sequence[TokenSequence]) -> Row:
    """The row of these sequences, which need not share a prefix (the row then holds several trees)."""
    token_ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    readouts: list[Readout] = []
    path: list[int] = []  # row positions of the current sequence
    before: tuple[int, ...] = ()
    for sequence in sorted(sequences):
        shared = shared_length(before, sequence.input_ids)
        for at in path[shared:]:
            ends[at] = len(token_ids)
        del path[shared:]
        for token in sequence.input_ids[shared:]:
            depths.append(len(path))
            path.append(len(token_ids))
            token_ids.append(token)
            ends.append(0)
        positions = tuple(path[-len(sequence.target_ids) :])
        readouts.append(Readout(sequence.key, positions, sequence.target_ids, sequence.greedy))
        before = sequence.input_ids
    for at in path:
        ends[at] = len(token_ids)
    return Row(tuple(token_ids), tuple(depths), tuple(ends), tuple(readouts))


def prompt_row(token_ids: Sequence[int], example: int, new_tokens: int) -> Row:
    """A prompt to continue; each readout stands for one generated token, keys (example, 0 … new_tokens -
    1)."""
    ids = tuple(token_ids)
    last = len(ids) - 1
    readouts = tuple(Readout((example, nth), (last,), (0,)) for nth in range(new_tokens))
    return Row(ids, tuple(range(len(ids))), (len(ids),) * len(ids), readouts)


def longest_prefix(sequences: Sequence[TokenSequence]) -> int:
    """Tokens that all of the sorted `sequences` begin with, before the first position that is read."""
    unread = min(len(one.input_ids) - len(one.target_ids) for one in sequences)
    return min(unread, shared_length(sequences[0].input_ids, sequences[-1].input_ids))


def added_tokens(before: Sequence[int], sequences: Sequence[TokenSequence]) -> int:
    """Tokens that sorted `sequences` add to a row whose last sequence is `before`."""
    added = 0
    for sequence in sequences:
        added += len(sequence.input_ids) - shared_length(before, sequence.input_ids)
        before = sequence.input_ids
    return added
