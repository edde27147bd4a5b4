"""Shards are Arrow files that are divided into blocks, and every damage is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gaguide.data import BlockStore, BuildRequest, build_shards, load_tokenizer, read_manifest
from gaguide.data.build.encode import is_held_out
from gaguide.data.corpus import folder_corpus, mixture_corpus
from gaguide.data.format.shards import open_shard, write_shard
from gaguide.data.read.verify import verify
from gaguide.errors import UserError
from gaguide.files import hash_file


def train_ids(folder: Path) -> list[list[list[int]]]:
    """Documents of each training shard, read with pyarrow alone."""
    return [
        pa.ipc.open_file(pa.memory_map(str(path))).read_all()["tokens"].to_pylist()
        for path in sorted(folder.glob("train-*.arrow"))
    ]


def findings(folder: Path) -> dict[str, str]:
    return {name: finding.problem.split(":")[0] for name, finding in verify(folder) if finding is not None}


def test_documents_are_read_back_with_their_boundaries(shards, texts):
    tokenizer = load_tokenizer(shards / "tokenizer")
    eos = tokenizer.eos_token_id
    documents = [ids for shard in train_ids(shards) for ids in shard]
    assert all(ids[-1] == eos and eos not in ids[:-1] for ids in documents)
    expected = [text for text in texts if not is_held_out(text.encode(), 0.05)]
    assert [tokenizer.decode(ids[:-1]) for ids in documents] == expected


def test_datasets_reads_a_shard(shards, tmp_path):
    datasets = pytest.importorskip("datasets")
    path = shards / "train-00000.arrow"
    with pa.memory_map(str(path)) as source:
        rows = pa.ipc.open_file(source).read_all().num_rows
    loaded = datasets.load_dataset(
        "arrow", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == rows
    assert loaded[3]["tokens"] == train_ids(shards)[0][3]


def test_values_are_mapped_without_a_copy(shards):
    manifest = read_manifest(shards)
    info = manifest.splits["train"][0]
    before = pa.total_allocated_bytes()
    shard = open_shard(shards / info.file, info, manifest.tokenizer_fingerprint)
    assert pa.total_allocated_bytes() == before
    assert shard.tokens.dtype == np.uint16 and not shard.tokens.flags.owndata
    assert len(shard.offsets) == info.documents + 1


@pytest.mark.parametrize("block_length", [1, 7, 128, 1000])
def test_blocks_divide_the_shards_in_order(shards, block_length):
    store = BlockStore(shards, "train", block_length)
    flat = [np.concatenate([np.array(ids) for ids in shard]) for shard in train_ids(shards)]
    expected = [ids[: len(ids) // block_length * block_length].reshape(-1, block_length) for ids in flat]
    assert store.shard_blocks == tuple(map(len, expected)) and len(store) == sum(store.shard_blocks)
    blocks = np.random.default_rng(0).integers(0, len(store), 50)
    read = store.read(blocks)
    assert read.dtype == np.int64 and np.array_equal(read, np.concatenate(expected)[blocks])
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read(blocks), read)


def test_document_starts(shards):
    store = BlockStore(shards, "train", 64)
    eos = store.manifest.eos_token_id
    for block in range(len(store)):
        starts = store.document_starts(block)
        ids = store.read(np.array([block]))[0]
        # A document begins right after each end-of-text id.
        assert [start for start in starts if start > 0] == [
            at + 1 for at in np.flatnonzero(ids == eos) if at < 63
        ]
    assert store.document_starts(0)[0] == 0


def test_documents_of_a_block_by_token(shards):
    """document_ids and positions, derived from the end-of-text ids alone."""
    store = BlockStore(shards, "train", 96)
    blocks = np.random.default_rng(1).permutation(len(store))
    ended = store.read(blocks) == store.manifest.eos_token_id
    ids_BT, positions_BT = store.document_ids(blocks), store.positions(blocks)
    assert (ids_BT.dtype, positions_BT.dtype) == (np.int32, np.int64)
    expected = np.zeros_like(ids_BT)
    expected[:, 1:] = ended.cumsum(axis=1)[:, :-1]
    assert np.array_equal(ids_BT, expected) and ids_BT.max() >= 1
    for ids_T, positions_T in zip(ids_BT, positions_BT):
        for document in np.unique(ids_T):
            places = positions_T[ids_T == document]
            assert places.tolist() == list(range(len(places)))


def test_block_ids_out_of_range_are_refused(shards):
    store = BlockStore(shards, "train", 64)
    for outside in (-1, len(store)):
        with pytest.raises(IndexError):
            store.read(np.array([outside]))


def test_large_vocabularies_use_uint32(tmp_path):
    documents = [np.array([0, 70_000, 2**31 + 5], np.uint32), np.array([3], np.uint32)]
    info = write_shard(tmp_path / "x.arrow", documents, np.dtype("uint32"), "f")
    shard = open_shard(tmp_path / "x.arrow", info, "f")
    assert shard.tokens.tolist() == [0, 70_000, 2**31 + 5, 3] and shard.offsets.tolist() == [0, 3, 4]


def test_user_errors_name_the_remedy(shards, tmp_path):
    with pytest.raises(UserError, match="gaguide data build"):
        BlockStore(tmp_path / "nowhere", "train", 8)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        BlockStore(tmp_path, "train", 8)
    with pytest.raises(UserError, match="did you mean 'train'"):
        BlockStore(shards, "trian", 8)
    with pytest.raises(UserError, match=r"block_length = 10000000.*longer than every shard"):
        BlockStore(shards, "train", 10**7)
    with pytest.raises(UserError, match="at least 1"):
        BlockStore(shards, "train", 0)


def test_missing_held_out_split_names_the_option(jsonl, tokenizer_folder, tmp_path):
    build_shards(BuildRequest((str(jsonl),), tmp_path / "s", str(tokenizer_folder), validation_fraction=0))
    with pytest.raises(UserError, match="--validation-fraction"):
        BlockStore(tmp_path / "s", "validation", 8)


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"format": "another"}, "is not a valid manifest"),
        ({"splits": {}}, "edited or damaged"),
        ({"token_dtype": "float64"}, "must be one of uint16, uint32"),
        ({"surprise": 1}, "is not a valid manifest"),
    ],
)
def test_invalid_manifest_is_refused(shards, changes, message):
    edit_manifest(shards, **changes)
    with pytest.raises(UserError, match=message):
        read_manifest(shards)


def test_verify_finds_nothing_in_an_intact_folder(shards):
    assert findings(shards) == {}
    assert read_manifest(shards).fingerprint == read_manifest(shards).fingerprint


def test_verify_names_each_damaged_file(shards, tokenizer_folder, jsonl, other_tokenizer_folder):
    names = sorted(path.name for path in shards.glob("train-*.arrow"))
    assert len(names) >= 4
    (shards / names[0]).unlink()
    with (shards / names[1]).open("r+b") as file:
        file.truncate(1000)
    content = bytearray((shards / names[2]).read_bytes())
    content[len(content) // 2] ^= 1
    (shards / names[2]).write_bytes(content)
    (shards / "train-00099.arrow").write_bytes((shards / names[3]).read_bytes())
    other = shards.parent / "other"
    build_shards(BuildRequest((str(jsonl),), other, str(other_tokenizer_folder), shard_tokens=8_000))
    (shards / names[3]).write_bytes((other / "train-00000.arrow").read_bytes())
    (shards / "tokenizer" / "tokenizer.json").write_bytes(
        (other_tokenizer_folder / "tokenizer.json").read_bytes()
    )
    found = findings(shards)
    # The foreign shard may be larger or smaller: "damaged" or "truncated".
    assert found.pop(names[3]) in ("damaged", "truncated")
    assert found == {
        names[0]: "missing",
        names[1]: "truncated",
        names[2]: "damaged",
        "train-00099.arrow": "foreign",
        "tokenizer": "foreign",
    }


def test_a_foreign_shard_of_the_right_size_is_named_at_first_use(shards):
    manifest = read_manifest(shards)
    info = manifest.splits["train"][0]
    shard = open_shard(shards / info.file, info, manifest.tokenizer_fingerprint)
    documents = [shard.tokens[a:b].copy() for a, b in zip(shard.offsets, shard.offsets[1:])]
    fingerprint = "0" * len(manifest.tokenizer_fingerprint)
    write_shard(shards / info.file, documents, manifest.dtype, fingerprint)
    store = BlockStore(shards, "train", 64)
    with pytest.raises(UserError, match=r"train-00000.arrow is foreign: it was made with another tokenizer"):
        store.read(np.array([0]))
    assert findings(shards) == {info.file: "foreign"}


def damage(path: Path, at: int, replacement: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(replacement)


def test_ids_outside_the_vocabulary_are_named_when_read(shards):
    manifest = read_manifest(shards)
    path = shards / manifest.splits["train"][0].file
    content = path.read_bytes()
    ids = np.array(train_ids(shards)[0][0][:64], np.uint16).tobytes()
    damage(path, content.index(ids) + 20, b"\xff\xff")
    store = BlockStore(shards, "train", 64)
    with pytest.raises(UserError, match=r"train-00000.arrow is damaged: it holds the id 65535, .* 2047"):
        store.read(np.array([0]))


def test_a_plausible_wrong_id_is_named_by_the_checksum(shards):
    """Reading the damaged block succeeds; the checksum comparison that it starts finds the damage."""
    path = shards / "train-00001.arrow"
    ids = np.array(train_ids(shards)[1][1][:64], np.uint16).tobytes()
    damage(path, path.read_bytes().index(ids) + 20, b"\x07\x00")
    store = BlockStore(shards, "train", 64)
    store.read(np.array([0]))
    store.wait_for_checksums()
    store.read(np.array([store.shard_blocks[0]]))
    with pytest.raises(UserError, match=r"train-00001.arrow is damaged: its bytes differ"):
        store.wait_for_checksums()
    with pytest.raises(UserError, match=r"train-00001.arrow is damaged: its bytes differ"):
        store.read(np.array([0]))


def test_impossible_document_boundaries_are_named_at_first_use(shards):
    path = shards / "train-00000.arrow"
    lengths = [len(ids) for ids in train_ids(shards)[0]]
    offsets = np.cumsum([0, *lengths]).astype(np.int32).tobytes()
    damage(path, path.read_bytes().index(offsets) + 4, b"\xff\xff\xff\x7f")
    with pytest.raises(UserError, match="document boundaries are impossible"):
        BlockStore(shards, "train", 64).read(np.array([0]))


def test_a_checksum_is_computed_once_on_a_host(shards, monkeypatch):
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return hash_file(path)

    monkeypatch.setattr("gaguide.data.read.checksums.hash_file", counted)
    for _ in range(2):
        store = BlockStore(shards, "train", 64)
        store.read(np.arange(len(store)))
        store.wait_for_checksums()
    assert sorted(read) == sorted(path.name for path in shards.glob("train-*.arrow"))
    (shards / "train-00000.arrow").touch()
    again = BlockStore(shards, "train", 64)
    again.read(np.array([0]))
    again.wait_for_checksums()
    assert read[-1] == "train-00000.arrow" and len(read) == len(set(read)) + 1


def test_training_names_missing_and_truncated_shards_at_once(shards):
    (shards / "train-00001.arrow").unlink()
    with (shards / "train-00002.arrow").open("r+b") as file:
        file.truncate(64)
    with pytest.raises(UserError) as caught:
        BlockStore(shards, "train", 64)
    assert "train-00001.arrow is missing" in str(caught.value)
    assert "train-00002.arrow is truncated" in str(caught.value)


def test_a_run_refuses_shards_whose_tokenizer_was_replaced(shards, other_tokenizer_folder):
    """Its words would be other ids, and the exported model's text as well."""
    tokenizer = shards / "tokenizer" / "tokenizer.json"
    resaved = json.dumps(json.loads(tokenizer.read_text("utf-8")))
    tokenizer.write_text(resaved, "utf-8")
    folder_corpus(shards, 64, 0, 0)
    tokenizer.write_bytes((other_tokenizer_folder / "tokenizer.json").read_bytes())
    for field, read in (
        ("data.shards", lambda: folder_corpus(shards, 64, 0, 0)),
        ("data.mixture.0.shards", lambda: mixture_corpus([(str(shards), 1.0)], 64, 0, 0)),
    ):
        with pytest.raises(UserError) as caught:
            read()
        (fault,) = caught.value.faults
        assert fault.field == field and fault.value == str(shards / "tokenizer")
        assert "tokenizer is foreign" in fault.problem
