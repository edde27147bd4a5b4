"""Groups of examples with a cached prefix, chosen to save most; and their batches."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gaguide.evaluate.schedule.batches import Batch, make_batches
from gaguide.evaluate.schedule.cost import Budget, CostModel
from gaguide.evaluate.schedule.prefixes import PrefixGroup, group_by_prefix
from gaguide.evaluate.schedule.ranks import assign_batches
from gaguide.evaluate.schedule.rows import TokenSequence, longest_prefix

_COST = CostModel(layers=12, width=768, vocabulary=50257)
_EXAMPLES = st.lists(
    st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=6).map(tuple), min_size=1, max_size=2),
    min_size=1,
    max_size=7,
)


def _sequences(examples: list[list[tuple[int, ...]]], read: int = 1) -> list[list[TokenSequence]]:
    return [
        [TokenSequence(ids, ids[-read:], (at, nth)) for nth, ids in enumerate(pairs)]
        for at, pairs in enumerate(examples)
    ]


def _saved(count: int, tokens: int, shared: int) -> float:
    return (count - 1) * shared - 3


def _best(ordered: list[list[TokenSequence]]) -> float:
    """The most that any choice of disjoint runs saves, by exhaustive search."""
    best = [0.0] * (len(ordered) + 1)
    for end in range(1, len(ordered) + 1):
        best[end] = best[end - 1]
        for start in range(end - 1):
            run = sorted(itertools.chain(*ordered[start:end]))
            best[end] = max(best[end], best[start] + _saved(end - start, 0, longest_prefix(run)))
    return best[-1]


@given(_EXAMPLES)
def test_no_other_choice_of_prefixes_saves_more(examples: list[list[tuple[int, ...]]]) -> None:
    sequences = _sequences(examples)
    rest, *cached = group_by_prefix(sequences, _saved)
    assert rest.shared == 0
    found = [one for group in (rest, *cached) for example in group.examples for one in example]
    assert sorted(found) == sorted(itertools.chain(*sequences))
    for group in cached:
        together = sorted(itertools.chain(*group.examples))
        assert 0 < group.shared <= longest_prefix(together)
    saved = sum(_saved(len(group.examples), 0, group.shared) for group in cached)
    assert saved == _best(sorted(map(sorted, sequences), key=lambda one: one[0]))


def test_tokens_after_a_prefix_are_counted_once() -> None:
    calls = []

    def saving(count: int, tokens: int, shared: int) -> float:
        calls.append((count, tokens, shared))
        return 0.0

    group_by_prefix(_sequences([[(1, 2, 3, 4), (1, 2, 3, 5)], [(1, 2, 3, 5)], [(1, 2, 6, 7, 8)]]), saving)
    assert (
        sorted(calls) == [(2, 2, 2), (3, 5, 2)]
        or sorted(calls) == [(2, 3, 2), (3, 6, 2)]
        or calls == [(2, 2, 3), (3, 6, 2)]
    )


def _task(count: int, prefix: int = 400, first: int = 0) -> list[list[tuple[int, ...]]]:
    shots = tuple(range(first, first + prefix))
    return [[(*shots, 5000 + at, *range(6000, 6020), nth) for nth in (1, 2)] for at in range(count)]


def test_a_prefix_of_more_examples_than_fit_into_one_row_is_cached() -> None:
    few = make_batches(_sequences(_task(10)), Budget(512, 2048), _COST)
    assert [batch.prefix for batch in few] == [()]
    many = make_batches(_sequences(_task(200)), Budget(512, 2048), _COST)
    assert {batch.prefix for batch in many} == {tuple(range(400))}
    assert sum(len(row) for batch in many for row in batch.rows) == 200 * 23
    assert all(batch.prefix_cost == _COST.row(400) for batch in many)
    # A row longer than a batch contains a single example.
    assert all(len(batch.rows) * max(map(len, batch.rows)) <= 512 for batch in many)


def test_batches_with_the_same_prefix_are_consecutive_on_a_rank() -> None:
    examples = _task(150) + _task(150, first=1000) + [[(9, at, at, at)] for at in range(50)]
    batches = make_batches(_sequences(examples), Budget(512, 2048), _COST)
    assert len({batch.prefix for batch in batches}) == 3
    shares = assign_batches(batches, 3)
    assert sorted(at for share in shares for at in share) == list(range(len(batches)))
    for share in shares:
        runs = [prefix for prefix, _ in itertools.groupby(share, key=lambda at: batches[at].prefix)]
        assert len(runs) == len(set(runs))


def test_an_expensive_prefix_is_computed_on_few_ranks() -> None:
    batches = [Batch((), 1.0, prefix=(at % 2 + 1,), prefix_cost=100.0) for at in range(8)]
    shares = assign_batches(batches, 2)
    assert [{batches[at].prefix for at in share} for share in shares] == [{(1,)}, {(2,)}]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=40), st.integers(1, 6))
def test_each_batch_goes_to_the_rank_that_is_free_first(
    given_batches: list[tuple[int, int]], ranks: int
) -> None:
    batches = [
        Batch((), float(cost), prefix=(prefix,) * bool(prefix), prefix_cost=5.0 * prefix)
        for cost, prefix in given_batches
    ]
    given_to = {at: rank for rank, share in enumerate(assign_batches(batches, ranks)) for at in share}
    assert sorted(given_to) == list(range(len(batches)))
    busy, held = [0.0] * ranks, [{()} for _ in range(ranks)]
    for at in sorted(given_to, key=lambda at: (-batches[at].cost, at)):
        prefix, cost = batches[at].prefix, batches[at].prefix_cost
        starts = [busy[rank] + cost * (prefix not in held[rank]) for rank in range(ranks)]
        assert starts[given_to[at]] == min(starts)
        busy[given_to[at]] = min(starts) + batches[at].cost
        held[given_to[at]].add(prefix)


def test_examples_that_share_nothing_are_not_grouped() -> None:
    examples = _sequences([[tuple(range(100 * at, 100 * at + 50))] for at in range(40)])
    (rest,) = group_by_prefix(examples, lambda count, tokens, shared: (count - 1) * shared)
    assert rest == PrefixGroup(0, [sorted(one) for one in sorted(examples)])
