"""The order is a permutation in every epoch and depends on seed and position only."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaguide.data.read.order import BlockOrder, keyed_permutation, rank_micro_batches, steps_for_epochs

SHARDS = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any).map(tuple)


def whole(order: BlockOrder, epoch: int = 0) -> np.ndarray:
    total = order.total_blocks
    return order.at(np.arange(epoch * total, (epoch + 1) * total))


@given(SHARDS, st.integers(-(2**70), 2**70), st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
def test_every_epoch_contains_every_block_once(shards, seed, window, growing, epoch):
    order = BlockOrder(shards, seed, window, growing)
    for each in (0, epoch):
        assert sorted(whole(order, each)) == list(range(sum(shards)))


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_keyed_permutation_is_a_permutation(size, key):
    assert sorted(keyed_permutation(np.arange(size), size, key)) == list(range(size))


@given(SHARDS, st.integers(0, 99), st.lists(st.integers(0, 10**12), max_size=20))
def test_a_position_does_not_depend_on_other_positions_of_the_call(shards, seed, positions):
    order = BlockOrder(shards, seed)
    alone = [int(order.at(np.array([position]))[0]) for position in positions]
    assert order.at(np.array(positions, np.int64)).tolist() == alone


@given(SHARDS, st.integers(0, 50), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=60)
def test_any_split_over_ranks_reads_the_same_global_batch(
    shards, step, world_size, micro_batch, accumulation
):
    order = BlockOrder(shards, 5)
    global_batch = world_size * micro_batch * accumulation
    parts = [
        rank_micro_batches(order, step, global_batch, micro_batch, rank, world_size)
        for rank in range(world_size)
    ]
    assert all(part.shape == (accumulation, micro_batch) for part in parts)
    expected = order.at(np.arange(step * global_batch, (step + 1) * global_batch))
    assert sorted(np.concatenate(parts, axis=None)) == sorted(expected)
    # Also for each micro batch, so that losses of micro batches can be compared.
    together = np.concatenate([np.concatenate([part[a] for part in parts]) for a in range(accumulation)])
    assert together.tolist() == expected.tolist()


def test_seeds_and_epochs_differ():
    shards = (300, 500, 200)
    first = whole(BlockOrder(shards, 1))
    for other in (whole(BlockOrder(shards, 2)), whole(BlockOrder(shards, 1), epoch=1)):
        assert (first == other).mean() < 0.05


def test_order_does_not_change_between_releases():
    """Runs saved by an older gaguide must resume in the same order: these numbers must never change."""
    order = BlockOrder((7, 0, 40, 13), 1234, 2)
    assert order.at(np.array([0, 1, 2, 59, 60, 61, 10**15])).tolist() == GOLDEN
    assert order.fingerprint[:16] == GOLDEN_FINGERPRINT


GOLDEN = [19, 43, 20, 1, 59, 55, 43]
GOLDEN_FINGERPRINT = "370887be27ca0a39"


def test_mixing_within_an_epoch():
    """Neighbours in the order are unrelated, and every stretch of a window mixes all of its shards."""
    order = BlockOrder((1000,) * 8, seed=3, window_shards=8)
    seen = whole(order)
    steps = np.abs(np.diff(seen))
    assert (steps == 1).mean() < 0.005
    assert abs(np.corrcoef(seen[:-1], seen[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(8000), seen)[0, 1]) < 0.05
    per_shard = np.bincount(seen[:800] // 1000, minlength=8)
    assert per_shard.min() > 60 and per_shard.max() < 150  # 100 expected, standard deviation 9.4


def test_a_window_reads_only_its_shards():
    order = BlockOrder((50,) * 20, seed=3, window_shards=4)
    seen = whole(order) // 50
    for start in range(0, 1000, 200):
        assert len(set(seen[start : start + 200])) == 4


def test_growing_windows_begin_with_one_shard():
    """In epoch 0 only: a run whose shards are still being fetched can start."""
    order = BlockOrder((50,) * 20, seed=3, window_shards=8, growing=True)
    shard_of = whole(order) // 50
    for windows, (start, end) in enumerate([(0, 1), (1, 3), (3, 7)], 1):
        assert len(set(shard_of[start * 50 : end * 50])) == end - start
        assert set(shard_of[: end * 50]) == set(order.shards_ahead(0, windows))
    assert np.array_equal(whole(order, 1), whole(BlockOrder((50,) * 20, 3, 8), 1))
    assert order.fingerprint != BlockOrder((50,) * 20, 3, 8).fingerprint


@given(SHARDS, st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=30)
def test_shards_ahead_are_those_read_next(shards, window, growing, first):
    order = BlockOrder(shards, 7, window, growing)
    ends = np.cumsum(shards)
    for position in range(first, first + 60):
        block = int(order.at(np.array([position]))[0])
        now, two = order.shards_ahead(position, 1), order.shards_ahead(position, 2)
        assert int(np.searchsorted(ends, block, side="right")) in now
        assert two[: len(now)] == now and len(set(two)) == len(two) <= 2 * window
        assert set(order.shards_ahead(position + 1, 1)) <= set(two)


def test_small_permutations_are_uniform():
    """Over many keys each element is mapped to every position equally often, also for small sizes."""
    keys = 2000
    counts = np.zeros((5, 5))
    for key in range(keys):
        counts[np.arange(5), keyed_permutation(np.arange(5), 5, key * 0x9E3779B97F4A7C15)] += 1
    assert np.abs(counts / keys - 0.2).max() < 0.05


@pytest.mark.processes
def test_a_thousand_times_openwebtext_needs_no_memory():
    """8.8 billion blocks: any position, in a process with little memory beyond numpy's."""
    program = (
        "import numpy as np, resource\n"
        "from gaguide.data.read.order import BlockOrder\n"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "order = BlockOrder((48_000,) * 184_000, 7)\n"
        "ids = order.at(np.arange(3 * 8_800_000_000, 3 * 8_800_000_000 + 4096))\n"
        "assert len(set(ids.tolist())) == 4096 and ids.max() < order.total_blocks\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base\n"
        "assert grown < 64_000, grown\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.parametrize(
    ("blocks", "epochs", "batch", "steps"),
    [
        (10, 1, 5, 2),
        (10, 1, 4, 3),
        (10, 2, 4, 5),
        (10, 0.5, 4, 2),
        (1000, 0.1, 100, 1),
        (8_830_000, 2, 512, 34493),
    ],
)
def test_steps_for_epochs_rounds_up(blocks, epochs, batch, steps):
    assert steps_for_epochs(blocks, epochs, batch) == steps


def test_fingerprint_distinguishes_orders():
    orders = [BlockOrder((5, 6), 1), BlockOrder((5, 6), 2), BlockOrder((6, 5), 1), BlockOrder((5, 6), 1, 4)]
    assert len({order.fingerprint for order in orders}) == 4
    assert orders[0].fingerprint == BlockOrder((5, 6), 1).fingerprint


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="at least one block"):
        BlockOrder((0, 0), 1)
    with pytest.raises(ValueError, match="negative"):
        BlockOrder((3,), 1).at(np.array([-1]))
    with pytest.raises(ValueError, match="world size 2"):
        rank_micro_batches(BlockOrder((30,), 1), 0, 9, 2, 0, 2)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        rank_micro_batches(BlockOrder((30,), 1), 0, 8, 2, 2, 2)


@given(SHARDS, st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 30))
@settings(max_examples=60)
def test_consecutive_steps_read_the_same_as_single_ones(shards, first, batch, steps):
    """Computing many steps at once gives the same blocks as computing each alone, also across epochs."""
    order = BlockOrder(shards, 11)
    for step in range(first, first + steps):
        positions = np.arange(step * batch, (step + 1) * batch)
        far = np.append(positions, 2**45)  # too far apart to be computed together
        assert order.at(positions).tolist() == BlockOrder(shards, 11).at(far)[:-1].tolist()


def test_pickled_order_has_no_cached_arrays():
    order = BlockOrder((50_000,) * 9, 3)
    bare = len(pickle.dumps(order))
    ids = order.at(np.arange(100))
    assert len(pickle.dumps(order)) == bare
    assert np.array_equal(pickle.loads(pickle.dumps(order)).at(np.arange(100)), ids)
