"""Shards at an address are fetched once per host, in the order of their use, atomically, in bounded space."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gaguide.data import (
    BlockOrder,
    BlockStore,
    BuildRequest,
    build_shards,
    load_tokenizer,
    tokenizer_fingerprint,
)
from gaguide.data.format.manifest import ShardInfo
from gaguide.data.read import remote as remote_module
from gaguide.data.read.cache import NoRoomError, ShardCache
from gaguide.data.read.remote import Patience
from gaguide.errors import UserError
from tests.data.faulty_server import FaultyServer, faulty_server
from tests.data.test_data_cli import call
from tests.support.patience import patience, wait_until

pytest.importorskip("aiohttp", reason="needs aiohttp, by which fsspec speaks http")
pytest.importorskip("tenacity", reason="needs tenacity")

SHORT = Patience(attempts=4, first_wait=0.01, longest_wait=0.05, stall_seconds=0.5)


@pytest.fixture(scope="module")
def folder(jsonl: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several small shards; read-only."""
    folder = tmp_path_factory.mktemp("stream") / "shards"
    build_shards(BuildRequest((str(jsonl),), folder, str(tokenizer_folder), shard_tokens=4_000))
    return folder


@pytest.fixture()
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(remote_module, "PATIENCE", SHORT)
    with faulty_server(folder) as running:
        yield running


def whole(store: BlockStore) -> np.ndarray:
    return store.read(np.arange(len(store)))


def shards_of(store: BlockStore) -> list[ShardInfo]:
    return list(store.manifest.splits["train"])


def cached(node_cache: Path) -> list[Path]:
    return list((node_cache / "shards").glob("*.arrow"))


def test_address_gives_the_same_blocks_as_the_folder(server, folder):
    here, there = BlockStore(folder, "train", 64), BlockStore(server.address, "train", 64)
    assert server.asked == ["manifest.json"], "the manifest, and nothing else before it is wanted"
    assert there.shard_blocks == here.shard_blocks and there.manifest == here.manifest
    assert np.array_equal(whole(there), whole(here))
    blocks = np.array([5, 2])
    assert np.array_equal(there.document_ids(blocks), here.document_ids(blocks))
    assert np.array_equal(pickle.loads(pickle.dumps(there)).read(blocks), here.read(blocks))
    own = load_tokenizer(there.tokenizer_folder)
    assert tokenizer_fingerprint(own) == here.manifest.tokenizer_fingerprint
    assert np.array_equal(whole(BlockStore(server.address, "train", 64)), whole(here))
    assert all(server.counts[info.file] == 1 for info in shards_of(here)), "fetched again"


def test_any_fsspec_file_system_works(folder):
    assert np.array_equal(
        whole(BlockStore(f"file://{folder}", "train", 64)), whole(BlockStore(folder, "train", 64))
    )


@pytest.mark.parametrize("fault", ["500", "short", "corrupt", "truncated", "killed", "stalled"])
def test_transient_failures_are_retried(server, folder, node_cache, fault):
    name = "train-00000.arrow"
    server.faults["manifest.json"] = ["500"]
    server.faults[name] = [fault, fault]
    assert np.array_equal(
        whole(BlockStore(server.address, "train", 64)), whole(BlockStore(folder, "train", 64))
    )
    assert server.counts[name] == 3
    assert not list((node_cache / "shards").glob(".tmp-*"))


def test_a_slow_server_is_waited_for(server, folder):
    """The transfer takes longer than the stall limit, but never stalls."""
    server.always["train-00000.arrow"] = "slow"
    store = BlockStore(server.address, "train", 64)
    assert np.array_equal(store.read(np.array([0])), BlockStore(folder, "train", 64).read(np.array([0])))
    assert server.counts["train-00000.arrow"] == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", r"fetching train-00001.arrow failed 4 times .*500.*\n.*resumes where this one stopped"),
        ("killed", "fetching train-00001.arrow failed 4 times"),
        ("corrupt", r"train-00001.arrow is damaged at its source: its bytes differ"),
        ("short", r"train-00001.arrow is damaged at its source: \d+ bytes arrived"),
    ],
)
def test_permanent_failures_are_named(server, node_cache, fault, message):
    server.always["train-00001.arrow"] = fault
    with pytest.raises(UserError, match=message):
        whole(BlockStore(server.address, "train", 64))
    assert server.counts["train-00001.arrow"] == 4 and len(cached(node_cache)) == 1


def test_missing_file_is_requested_once(server, tmp_path):
    with pytest.raises(UserError, match=r"manifest.json does not exist"):
        BlockStore(server.address + "/elsewhere", "train", 64)
    assert server.asked == ["elsewhere/manifest.json"]
    with pytest.raises(UserError, match="cannot be opened"):
        BlockStore("nosuchstore://bucket/x", "train", 64)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not a valid manifest"):
        BlockStore(f"file://{tmp_path}", "train", 64)


def test_training_starts_when_the_first_shard_has_arrived(server, folder, node_cache):
    store, here = BlockStore(server.address, "train", 64), BlockStore(folder, "train", 64)
    order = BlockOrder(store.shard_blocks, seed=5, window_shards=4, growing=True)
    needed = [shards_of(store)[index].file for index in order.shards_ahead(0, windows=3)]
    assert len(needed) == 6
    server.held = {name: threading.Event() for name in needed[1:]}
    first = order.at(np.arange(4))
    store.look_ahead(order, 0)
    assert np.array_equal(store.read(first), here.read(first))
    assert len(cached(node_cache)) == 1
    # Without any reads, the next windows arrive in order.
    for event in server.held.values():
        event.set()
    store.look_ahead(order, store.shard_blocks[order.shards_ahead(0)[0]])
    wait_until(lambda: len(cached(node_cache)) == 6)
    asked = [name for name in server.asked if name in needed]
    assert set(asked[:3]) == set(needed[:3])
    asked = len(server.asked)
    assert np.array_equal(store.read(order.at(np.arange(30))), here.read(order.at(np.arange(30))))
    assert len(server.asked) == asked


def test_cache_stays_within_its_limit_and_keeps_recent_shards(server, folder, node_cache):
    infos = shards_of(BlockStore(folder, "train", 64))
    assert len(infos) >= 8
    limit = sum(sorted(info.bytes for info in infos)[-3:])
    store = BlockStore(server.address, "train", 64, cache_bytes=limit)
    here = BlockStore(folder, "train", 64)
    starts = np.cumsum([0, *store.shard_blocks])[:-1]
    for turn in range(2):
        for index, start in enumerate(starts):
            assert np.array_equal(store.read(np.array([start])), here.read(np.array([start])))
            held = {path.stem for path in cached(node_cache)}
            assert infos[index].sha256 in held and infos[index - 1].sha256 in held | {infos[-1].sha256}
            assert sum(path.stat().st_size for path in cached(node_cache)) <= limit
        assert server.counts[infos[0].file] == turn + 1


def test_shards_that_are_read_are_not_evicted(server, folder):
    infos = shards_of(BlockStore(folder, "train", 64))
    limit = sum(sorted(info.bytes for info in infos)[-2:])
    reader, other = (BlockStore(server.address, "train", 64, cache_bytes=limit) for _ in range(2))
    expected = reader.read(np.array([0]))
    whole(other)
    assert np.array_equal(reader.read(np.array([0])), expected)
    assert np.array_equal(BlockStore(server.address, "train", 64).read(np.array([0])), expected)
    assert server.counts[infos[0].file] == 1, "evicted under its reader"
    assert max(server.counts[info.file] for info in infos[1:]) >= 1


def test_cache_that_is_too_small_is_refused(server, folder, monkeypatch):
    info = shards_of(BlockStore(folder, "train", 64))[0]
    monkeypatch.setattr(ShardCache.__init__, "__defaults__", (0.1,))
    store = BlockStore(server.address, "train", 64, cache_bytes=info.bytes // 2)
    with pytest.raises(UserError, match=r"data\.cache_bytes"):
        store.read(np.array([0]))
    store = BlockStore(server.address, "train", 64, cache_bytes=20 * info.bytes)
    with pytest.raises(UserError, match=r"data.cache_bytes.*window has 50 shards"):
        store.look_ahead(BlockOrder(store.shard_blocks, 1, window_shards=50), 0)


def read_all(address: str, length: int, barrier: object, results: object) -> None:
    store = BlockStore(address, "train", length)
    barrier.wait()
    results.put(int(whole(store).sum()))


@pytest.mark.processes
def test_processes_of_a_host_share_one_fetch(server, folder, node_cache):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (server.address, 64, barrier, results)
    running = [context.Process(target=read_all, args=arguments) for _ in range(2)]
    for process in running:
        process.start()
    expected = int(whole(BlockStore(folder, "train", 64)).sum())
    assert [results.get(timeout=patience(60)) for _ in running] == [expected] * 2
    for process in running:
        process.join()
    assert all(server.counts[info.file] == 1 for info in shards_of(BlockStore(folder, "train", 64)))


def fetch_for_ever(folder: Path, info: ShardInfo) -> None:
    def download(path: Path) -> None:
        path.write_bytes(b"half")
        time.sleep(10_000)

    ShardCache(folder, 10 * info.bytes).fetch(info, download)


@pytest.mark.processes
def test_killed_fetcher_leaves_no_lock_and_no_reserved_space(folder, tmp_path):
    infos = shards_of(BlockStore(folder, "train", 64))
    cache = ShardCache(tmp_path / "cache", sum(info.bytes for info in infos[:2]), room_seconds=0)
    process = multiprocessing.get_context("spawn").Process(
        target=fetch_for_ever, args=(tmp_path / "cache", infos[0])
    )
    process.start()
    wait_until(lambda: list(cache.folder.glob(".tmp-*")))
    assert not cache.fetch(infos[0], pytest.fail, wait=False), "it is being fetched"
    with pytest.raises(NoRoomError):
        cache.fetch(ShardInfo("x", 1, 1, "x", bytes=infos[1].bytes + 1), pytest.fail)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    copy = (folder / infos[1].file).read_bytes()
    assert cache.fetch(infos[1], lambda path: path.write_bytes(copy) and None)
    assert not list(cache.folder.glob(".tmp-*"))
    assert cache.fetch(
        infos[0], lambda path: path.write_bytes((folder / infos[0].file).read_bytes()) and None
    )


def test_info_and_verify_read_an_address(server, folder, node_cache):
    code, output = call("info", server.address)
    assert code == 0 and "train" in output and "fingerprint" in output
    assert server.asked == ["manifest.json"]
    code, output = call("verify", server.address)
    assert code == 0 and "all match the manifest" in output
    whole(BlockStore(server.address, "train", 64))  # what is in the cache is not what is verified
    server.always["train-00001.arrow"] = "corrupt"
    code, output = call("verify", server.address)
    assert code == 2 and "train-00001.arrow: " in output and "checksum" in output
    assert "train-00000.arrow" not in output
