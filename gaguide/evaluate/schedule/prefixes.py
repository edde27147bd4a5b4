"""Which examples share a prefix long enough to compute it once for all of them. Pure.

Sorted by tokens, examples with a common prefix are neighbours. Runs of neighbours form a tree: a longer
prefix belongs to a part of the run. Among nested runs those that save most are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gaguide.evaluate.schedule.rows import TokenSequence, added_tokens, longest_prefix, shared_length

ExampleSequences = list[TokenSequence]
"""The sequences of one example, sorted."""


@dataclass(frozen=True)
class PrefixGroup:
    """Examples whose shared prefix is computed once."""

    shared: int
    """Tokens that all sequences begin with and that are computed once; 0 in the group without a prefix."""
    examples: Sequence[ExampleSequences]
    """Members, sorted by tokens."""


@dataclass
class _Run:
    """Neighbouring examples while the tree is built."""

    start: int
    shared: int
    saved: float = 0.0
    chosen: list[tuple[int, int, int]] = field(default_factory=list)


def group_by_prefix(
    examples: Sequence[Sequence[TokenSequence]], saving: Callable[[int, int, int], float]
) -> list[PrefixGroup]:
    """All examples in groups; the first is the group without a shared prefix.

    saving(count, tokens, shared): what is saved by computing the first `shared` tokens of `count` examples
    separately from the `tokens` that follow in all of them. A prefix ends before the first position that is
    read.
    """
    ordered = sorted(map(sorted, examples), key=lambda sequences: sequences[0])
    chosen = _best_runs(ordered, saving)
    grouped = {at for start, end, _ in chosen for at in range(start, end)}
    rest = [example for at, example in enumerate(ordered) if at not in grouped]
    return [PrefixGroup(0, rest), *(PrefixGroup(shared, ordered[start:end]) for start, end, shared in chosen)]


def _best_runs(
    ordered: Sequence[ExampleSequences], saving: Callable[[int, int, int], float]
) -> list[tuple[int, int, int]]:
    """(start, end, shared) of the chosen runs, none inside another; runs are visited from the inside out."""
    limits = [longest_prefix(sequences) for sequences in ordered]
    until = [0]  # distinct tokens of all examples before this one
    before: tuple[int, ...] = ()
    for sequences in ordered:
        until.append(until[-1] + added_tokens(before, sequences))
        before = sequences[-1].input_ids

    def close(run: _Run, end: int) -> _Run:
        """The better of the run as a whole and of what was chosen inside it."""
        first = added_tokens((), ordered[run.start]) - run.shared
        tokens = first + until[end] - until[run.start + 1]
        saved = saving(end - run.start, tokens, run.shared)
        if saved > run.saved:
            return _Run(run.start, run.shared, saved, [(run.start, end, run.shared)])
        return run

    outer = _Run(0, 0)
    open_runs = [outer]
    for at in range(1, len(ordered) + 1):
        shared = 0
        if at < len(ordered):
            common = shared_length(ordered[at - 1][-1].input_ids, ordered[at][0].input_ids)
            shared = min(common, limits[at - 1], limits[at])
        new = _Run(at - 1, shared)
        while open_runs[-1].shared > shared:
            closed = close(open_runs.pop(), at)
            inside = open_runs[-1] if open_runs[-1].shared >= shared else new
            new.start = closed.start
            inside.saved += closed.saved
            inside.chosen += closed.chosen
        if open_runs[-1].shared < shared:
            open_runs.append(new)
    return outer.chosen
