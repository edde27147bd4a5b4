"""Every example in exactly one batch, every batch on exactly one rank, shares of equal cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gaguide.evaluate.schedule.batches import Batch, make_batches
from gaguide.evaluate.schedule.cost import Budget, CostModel
from gaguide.evaluate.schedule.ranks import assign_batches
from gaguide.evaluate.schedule.rows import TokenSequence

_COST = CostModel(layers=12, width=768, vocabulary=50257)
_EXAMPLE = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30).map(tuple), min_size=1, max_size=4)


def _sequences(examples: list[list[tuple[int, ...]]]) -> list[list[TokenSequence]]:
    return [
        [TokenSequence(ids, ids[-1:], (at, nth)) for nth, ids in enumerate(pairs)]
        for at, pairs in enumerate(examples)
    ]


@given(st.lists(_EXAMPLE, min_size=1, max_size=30), st.integers(1, 400))
def test_each_pair_is_read_once_and_examples_are_not_split(
    examples: list[list[tuple[int, ...]]], batch_tokens: int
) -> None:
    batches = make_batches(_sequences(examples), Budget(batch_tokens), _COST)
    reads = [read for batch in batches for row in batch.rows for read in row.readouts]
    assert sorted(read.key for read in reads) == [
        (at, nth) for at, pairs in enumerate(examples) for nth in range(len(pairs))
    ]
    found = [example for batch in batches for example in batch.examples]
    assert sorted(found) == list(range(len(examples)))


@given(st.lists(_EXAMPLE, min_size=1, max_size=30), st.integers(40, 400))
def test_batches_respect_the_budget_unless_one_example_exceeds_it(
    examples: list[list[tuple[int, ...]]], batch_tokens: int
) -> None:
    for batch in make_batches(_sequences(examples), Budget(batch_tokens), _COST):
        different = {frozenset(examples[at]) for at in batch.examples}  # duplicates are computed once
        assert len(batch.rows) * max(map(len, batch.rows)) <= batch_tokens or len(different) == 1


def test_shared_demonstrations_are_computed_once_per_row() -> None:
    shots = tuple(range(400))
    examples = [[(*shots, 1000 + at, 7), (*shots, 1000 + at, 8)] for at in range(40)]
    batches = make_batches(_sequences(examples), Budget(2048), _COST)
    tokens = sum(len(row) for batch in batches for row in batch.rows)
    assert tokens == 400 + 40 * 3


def test_duplicates_of_an_example_with_several_rows_are_computed_once() -> None:
    example = [tuple(range(1000 * side, 1000 * side + 200)) for side in (1, 2)]
    once, thrice = (make_batches(_sequences([example] * count), Budget(2048), _COST) for count in (1, 3))
    assert [[len(row) for row in batch.rows] for batch in once] == [[200, 200]]
    assert [[len(row) for row in batch.rows] for batch in thrice] == [[200, 200]]
    assert thrice[0].examples == {0, 1, 2}


def test_unrelated_examples_do_not_share_a_row() -> None:
    examples = [[tuple(range(100 * at, 100 * at + 50))] for at in range(10)]
    batches = make_batches(_sequences(examples), Budget(2048), _COST)
    assert all(len(row) == 50 for batch in batches for row in batch.rows)


def test_batches_do_not_depend_on_the_order_of_examples_within_ties() -> None:
    examples = [[(1, 2, at % 5)] for at in range(50)]
    once, again = (make_batches(_sequences(examples), Budget(64), _COST) for _ in range(2))
    assert once == again


@given(st.lists(st.floats(0.1, 100), max_size=60), st.integers(1, 7))
def test_batches_are_assigned_once_and_evenly(costs: list[float], ranks: int) -> None:
    batches = [Batch((), cost) for cost in costs]
    assigned = assign_batches(batches, ranks)
    assert len(assigned) == ranks
    assert sorted(at for share in assigned for at in share) == list(range(len(costs)))
    loads = [sum(costs[at] for at in share) for share in assigned]
    # Longest first keeps the shares within one batch of each other.
    assert max(loads) - min(loads) <= max(costs, default=0.0) + 1e-6
