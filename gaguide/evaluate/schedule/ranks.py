"""Which rank computes which batches. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from gaguide.evaluate.schedule.batches import Batch


def assign_batches(batches: Sequence[Batch], ranks: int) -> list[list[int]]:
    """Batch numbers of each rank: the most expensive batch first, each to the rank that is free first.

    A rank's batches with the same prefix are consecutive, so that it caches one prefix at a time.
    """
    busy = [0.0] * ranks
    all_ranks = [(0.0, rank) for rank in range(ranks)]
    ranks_with_prefix: dict[tuple[int, ...], list[tuple[float, int]]] = {}
    assigned: list[dict[tuple[int, ...], list[int]]] = [{} for _ in range(ranks)]
    for at in sorted(range(len(batches)), key=lambda at: (-batches[at].cost, at)):
        batch = batches[at]
        with_prefix = ranks_with_prefix.setdefault(batch.prefix, [])
        until, rank = _first_free(all_ranks, busy)
        until += batch.prefix_cost
        if with_prefix and _first_free(with_prefix, busy)[0] <= until:
            until, rank = _first_free(with_prefix, busy)
        busy[rank] = until + batch.cost
        if batch.prefix not in assigned[rank]:
            heapq.heappush(with_prefix, (busy[rank], rank))
        assigned[rank].setdefault(batch.prefix, []).append(at)
    return [[at for part in by_prefix.values() for at in part] for by_prefix in assigned]


def _first_free(heap: list[tuple[float, int]], busy: Sequence[float]) -> tuple[float, int]:
    """The least (busy until, rank) of a heap whose times may lag behind those of `busy`."""
    while heap[0][0] < busy[heap[0][1]]:
        heapq.heapreplace(heap, (busy[heap[0][1]], heap[0][1]))
    return heap[0]
