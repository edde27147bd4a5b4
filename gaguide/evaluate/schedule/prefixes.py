"""Which examples begin alike for so long that their beginning is computed once for all of them. Pure.

Sorted by tokens, examples that begin alike stand side by side. Runs of them that share a prefix of some
length form a tree: a longer prefix belongs to a part of the run. Of nested runs those that save most are
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gaguide.evaluate.schedule.rows import TokenSequence, added_tokens, longest_prefix, shared_length

Example = list[TokenSequence]
"""The sequences of one example, sorted."""


@dataclass(frozen=True)
class Family:
    """Examples whose sequences all begin with the same `shared` tokens; 0: they need not."""

    shared: int
    examples: Sequence[Example]


@dataclass
class _Run:
    start: int
    shared: int
    saved: float = 0.0
    taken: list[tuple[int, int, int]] = field(default_factory=list)


def families(
    examples: Sequence[Sequence[TokenSequence]], saving: Callable[[int, int, int], float]
) -> list[Family]:
    """All examples, as families that keep a prefix, and one (the first) of those that do not.

    saving(count, tokens, shared): what it saves to compute the first `shared` tokens of `count` examples
    apart from the `tokens` that follow in all of them. A prefix ends before the first token that is read, so
    that what is read follows it.
    """
    ordered = sorted(map(sorted, examples), key=lambda sequences: sequences[0])
    taken = _best_runs(ordered, saving)
    kept = {at for start, end, _ in taken for at in range(start, end)}
    rest = [example for at, example in enumerate(ordered) if at not in kept]
    return [Family(0, rest), *(Family(shared, ordered[start:end]) for start, end, shared in taken)]


def _best_runs(
    ordered: Sequence[Example], saving: Callable[[int, int, int], float]
) -> list[tuple[int, int, int]]:
    """(start, end, shared) of the runs taken, none within another; runs are met from the inside outwards."""
    caps = [longest_prefix(sequences) for sequences in ordered]
    until = [0]  # distinct tokens of all examples before this one
    before: tuple[int, ...] = ()
    for sequences in ordered:
        until.append(until[-1] + added_tokens(before, sequences))
        before = sequences[-1].input_ids

    def close(run: _Run, end: int) -> _Run:
        """The better of the run as a whole and of what was taken inside it."""
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
            shared = min(common, caps[at - 1], caps[at])
        new = _Run(at - 1, shared)
        while open_runs[-1].shared > shared:
            closed = close(open_runs.pop(), at)
            inside = open_runs[-1] if open_runs[-1].shared >= shared else new
            new.start = closed.start
            inside.saved += closed.saved
            inside.taken += closed.taken
        if open_runs[-1].shared < shared:
            open_runs.append(new)
    return outer.taken
