"""Rows: token sequences that share prefixes, laid out so that every shared prefix is computed once.

Several sequences form a prefix tree; a row is that tree's tokens in depth-first order. A token may look at
its ancestors only, and its position is its depth, so each sequence is computed as if it stood alone. With
`ends[k]`, the row position just behind the subtree of token k, the attention mask is

    token q sees token k   if and only if   k <= q < ends[k]

Continuations of one prompt, demonstrations shared by many examples, and duplicates are all the same case.
A row of one sequence is an ordinary causal row. Legend: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, order=True)
class TokenSequence:
    """What one score needs. `key` = (example, pair); they sort by tokens, so that prefixes meet."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    key: tuple[int, int]

    def behind(self, count: int) -> TokenSequence:
        """Without its first `count` tokens, none of which is read."""
        return replace(self, input_ids=self.input_ids[count:])


@dataclass(frozen=True)
class Read:
    """Where one score is read: row position `positions[i]` predicts token `target_ids[i]`."""

    key: tuple[int, int]
    positions: tuple[int, ...]
    target_ids: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A prefix tree of T tokens, depth first: ids, depths (the model's positions), subtree ends, reads."""

    token_ids: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]
    reads: tuple[Read, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def branches(self) -> bool:
        """Whether the row needs a mask of its own, being more than one sequence and its prefixes."""
        return any(end != len(self) for end in self.ends)

    @property
    def scored(self) -> int:
        """Number of positions that need logits."""
        return len({at for read in self.reads for at in read.positions})

    def sequence(self, read: Read) -> tuple[int, ...]:
        """The input ids of one read, as they would stand alone."""
        last = read.positions[-1]
        return tuple(self.token_ids[at] for at in range(last + 1) if last < self.ends[at])


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    low, high = 0, shortest  # prompts are long and mostly equal: halving compares slices at C speed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def build_row(sequences: Sequence[TokenSequence]) -> Row:
    """The row of these sequences, which need not share anything (it then holds several trees)."""
    token_ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    reads: list[Read] = []
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
        reads.append(Read(sequence.key, tuple(path[-len(sequence.target_ids) :]), sequence.target_ids))
        before = sequence.input_ids
    for at in path:
        ends[at] = len(token_ids)
    return Row(tuple(token_ids), tuple(depths), tuple(ends), tuple(reads))


def longest_prefix(sequences: Sequence[TokenSequence]) -> int:
    """Tokens that all of the sorted `sequences` begin with, before the first one that is read."""
    unread = min(len(one.input_ids) - len(one.target_ids) for one in sequences)
    return min(unread, shared_length(sequences[0].input_ids, sequences[-1].input_ids))


def added_tokens(before: Sequence[int], sequences: Sequence[TokenSequence]) -> int:
    """Tokens that sorted `sequences` add to a row whose last sequence is `before`."""
    added = 0
    for sequence in sequences:
        added += len(sequence.input_ids) - shared_length(before, sequence.input_ids)
        before = sequence.input_ids
    return added
