"""A mixture reads each folder by weight in its own order, and is a pure function like a folder's order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaguide.data import BlockStore, BuildRequest, MixedOrder, MixedStore, build_shards, rank_micro_batches
from gaguide.data.read.mixture import ROUND
from gaguide.errors import UserError

PARTS = ((7, 0, 40, 13), (500,), (90, 90))


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=3), st.integers(0, 10**9), st.integers(0, 10**8))
@settings(max_examples=25)
def test_every_round_has_the_share_of_each_folder_without_gaps(weights, seed, number):
    order = MixedOrder(PARTS, tuple(weights), seed)
    part, place = order.locate(np.arange(number * ROUND, (number + 1) * ROUND))
    assert sum(order.shares) == ROUND
    for index, share in enumerate(order.shares):
        assert abs(share - weights[index] / sum(weights) * ROUND) < 1
        assert sorted(place[part == index]) == list(range(number * share, (number + 1) * share))


def test_every_epoch_of_a_folder_contains_all_its_blocks():
    order = MixedOrder(PARTS, (0.5, 0.25, 0.25), 3)
    ids = order.at(np.arange(4 * ROUND))
    first = [0, 60, 560, 740]
    for index in range(3):
        own = ids[(ids >= first[index]) & (ids < first[index + 1])] - first[index]
        seen = np.bincount(own, minlength=sum(PARTS[index]))
        # Rounds need not contain whole epochs of a folder: counts of blocks may differ by one.
        assert seen.max() - seen.min() <= 1
        assert len(own) == 4 * order.shares[index]


def test_epochs_are_how_often_each_folder_is_read():
    order = MixedOrder(((3,), (500,)), (9, 1), 5)
    part, _ = order.locate(np.arange(2 * ROUND))
    wanted = tuple(float(count) / blocks for count, blocks in zip(np.bincount(part), (3, 500), strict=True))
    assert order.epochs(2 * ROUND) == wanted == (6000.0, 4.0)


def test_shares_hold_in_any_stretch_of_the_stream():
    part, _ = MixedOrder(PARTS, (70, 20, 10), 5).locate(np.arange(ROUND))
    for start in range(0, ROUND, 1000):
        counts = np.bincount(part[start : start + 1000], minlength=3)
        assert np.abs(counts - [700, 200, 100]).max() < 80  # five standard deviations and more


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=12), st.integers(0, 99))
@settings(max_examples=40)
def test_a_position_does_not_depend_on_other_positions_of_the_call(positions, seed):
    order = MixedOrder(PARTS, (1, 2, 3), seed)
    together = order.at(np.array(positions)).tolist()
    assert together == [int(MixedOrder(PARTS, (1, 2, 3), seed).at(np.array([p]))[0]) for p in positions]


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 24), (2, 3), (4, 6), (8, 1)])
def test_any_split_over_ranks_reads_the_same_global_batch(world_size, micro_batch):
    order = MixedOrder(PARTS, (1, 1, 1), 2)
    parts = [rank_micro_batches(order, 416, 24, micro_batch, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(parts, axis=None)) == sorted(order.at(np.arange(416 * 24, 417 * 24)))


def test_order_does_not_change_between_releases():
    order = MixedOrder(PARTS, (0.5, 0.3, 0.2), 1234, 2)
    assert order.at(np.array([0, 1, 2, 9_999, 10_000, 10**15])).tolist() == GOLDEN
    assert order.fingerprint[:16] == GOLDEN_FINGERPRINT


GOLDEN = [25, 33, 662, 29, 10, 597]
GOLDEN_FINGERPRINT = "07ab288691dbf238"


def test_fingerprint_distinguishes_mixtures():
    orders = [MixedOrder(PARTS, w, s) for w, s in [((1, 1, 1), 1), ((1, 1, 2), 1), ((1, 1, 1), 2)]]
    orders.append(MixedOrder((*PARTS[:2], (180,)), (1, 1, 1), 1))
    assert len({order.fingerprint for order in orders}) == 4
    assert MixedOrder(PARTS, (2, 2, 2), 1).fingerprint == orders[0].fingerprint, "weights have no unit"


def test_blocks_of_a_mixture_are_those_of_its_folders(shards, embedded):
    stores = [BlockStore(shards, "train", 64), BlockStore(embedded, "train", 64)]
    mixed = pickle.loads(pickle.dumps(MixedStore(stores)))
    assert len(mixed) == sum(map(len, stores)) == sum(mixed.shard_blocks)
    ids = MixedOrder(mixed.part_blocks, (1, 3), seed=4).at(np.arange(200))
    own = [(stores[0], i) if i < len(stores[0]) else (stores[1], i - len(stores[0])) for i in ids.tolist()]
    for method in ("read", "document_ids", "positions"):
        expected = np.concatenate([getattr(store, method)(np.array([i])) for store, i in own])
        found = getattr(mixed, method)(ids)
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
    last = len(mixed) - 1
    assert np.array_equal(mixed.document_starts(last), stores[1].document_starts(len(stores[1]) - 1))
    mixed.wait_for_checksums()
    with pytest.raises(IndexError):
        mixed.read(np.array([len(mixed)]))
    assert mixed.manifest.tokens == sum(store.manifest.tokens for store in stores)
    assert mixed.manifest.fingerprint not in {store.manifest.fingerprint for store in stores}


def test_mistakes(shards, jsonl, other_tokenizer_folder, tmp_path):
    with pytest.raises(UserError, match="must be a positive number"):
        MixedOrder(PARTS, (1, 0, float("nan")), 1)
    with pytest.raises(UserError, match="less than 1/10,000"):
        MixedOrder(PARTS, (1, 1, 1e-5), 1)
    build_shards(
        BuildRequest(
            (str(jsonl),), tmp_path / "other", str(other_tokenizer_folder), rows=9, validation_fraction=0
        )
    )
    with pytest.raises(UserError, match=r"other.*another tokenizer than"):
        MixedStore([BlockStore(shards, "train", 64), BlockStore(tmp_path / "other", "train", 64)])
