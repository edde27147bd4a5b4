"""Formats of tokenised corpora: files of the real libraries are read, and written as they write them."""

from __future__ import annotations

import filecmp
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaguide.data.exchange import mds, megatron, nanogpt
from gaguide.data.exchange.export import export_shards
from gaguide.data.exchange.format import ReadOptions, WriteOptions, split_at
from gaguide.data.exchange.formats import find_format
from gaguide.data.format.shards import Document
from gaguide.errors import UserError
from tests.data.exchange.make import DOCUMENTS
from tests.data.test_exchange import GOLDEN, built, chained, documents_of

__all__ = ["built"]  # a fixture


def read_golden(kind, name, **options):
    given = ReadOptions(**{"separator": 0, "vocab_size": 1000, **options})
    found = find_format(kind, "--from")
    return [document.ids.tolist() for document in found.read(found.find(str(GOLDEN / name)), given)]


def test_files_of_the_real_writers_are_read():
    whole = [ids.tolist() for ids in DOCUMENTS]
    rows = [[at, at + 1, 0, at + 2] for at in range(5)]
    assert (
        read_golden("mds", "mds") == read_golden("megatron", "m") == read_golden("megatron", "m.bin") == whole
    )
    assert read_golden("mds", "dynamic") == read_golden("mds", "bytes", dtype="int64") == whole[:2]
    assert read_golden("mds", "packed") == rows, (
        "compressed, with other columns, some shards without a sample"
    )
    joined = read_golden("mds", "packed", joined=True)
    assert joined == [[0], [1, 0], [2, 1, 2, 0], [3, 2, 3, 0], [4, 3, 4, 0], [5, 4, 5, 0], [6]]
    assert chained(joined) == chained(rows)
    assert read_golden("megatron", "s") == [[1, 2, 3, 4, 5, 6], [7, 8, 9]], (
        "sequences of a document are joined"
    )


def test_files_are_written_as_by_the_real_writers(tmp_path):
    options = WriteOptions(np.dtype("uint16"), 1000)
    documents = [Document(ids.astype(np.uint16)) for ids in DOCUMENTS]
    find_format("mds", "--to").write(tmp_path, "train", documents, options)
    for file in ("index.json", "shard.00000.mds"):
        assert (tmp_path / "train" / file).read_bytes() == (GOLDEN / "mds" / file).read_bytes()
    find_format("megatron", "--to").write(tmp_path, "m", documents, options)
    for file in ("m.bin", "m.idx"):
        assert (tmp_path / file).read_bytes() == (GOLDEN / file).read_bytes()


def test_large_sets_have_the_shards_of_the_real_writer(tmp_path, monkeypatch):
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")
    monkeypatch.setattr(mds, "SIZE_LIMIT", 2_000)
    random = np.random.default_rng(0)
    documents = [random.integers(0, 60_000, random.integers(1, 400)).astype(np.uint16) for _ in range(60)]
    mds.write(tmp_path, "train", map(Document, documents), WriteOptions(np.dtype("uint16"), 60_000))
    columns = {"tokens": "ndarray:uint16"}
    with streaming.MDSWriter(out=str(tmp_path / "real"), columns=columns, size_limit=2_000) as writer:
        for ids in documents:
            writer.write({"tokens": ids})
    compared = filecmp.dircmp(tmp_path / "train", tmp_path / "real")
    assert len(compared.same_files) > 5 and not (
        compared.diff_files or compared.left_only or compared.right_only
    )
    found = streaming.LocalDataset(local=str(tmp_path / "train"))
    assert all(np.array_equal(row["tokens"], ids) for row, ids in zip(found, documents, strict=True))


def test_megatrons_own_reader_reads_an_export(built, tmp_path):
    indexed = pytest.importorskip(
        "megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed"
    )
    export_shards(str(built), tmp_path / "out", "megatron")
    for split, documents in documents_of(built).items():
        found = indexed.IndexedDataset(str(tmp_path / "out" / split))
        assert [found[at].tolist() for at in range(len(found))] == [ids for ids, _ in documents]
        assert found.document_indices.tolist() == list(range(len(documents) + 1))


def test_nanogpts_own_way_of_reading_reads_an_export(built, tmp_path):
    export_shards(str(built), tmp_path / "out", "nanogpt")
    ids = np.memmap(tmp_path / "out" / "val.bin", dtype=np.uint16, mode="r")
    assert ids.tolist() == chained(ids for ids, _ in documents_of(built)["validation"])


def test_datasets_reads_an_export(built, tmp_path):
    import datasets

    export_shards(str(built), tmp_path / "out", "parquet")
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "out" / "train-*.parquet"),
        split="train",
        cache_dir=str(tmp_path),
    )
    assert rows["input_ids"][:] == [ids for ids, _ in documents_of(built)["train"]]


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=5), st.booleans())
def test_a_stream_is_split_wherever_its_pieces_end(pieces, at_start):
    stream = chained(pieces)
    expected, current = [], []
    for token in stream:
        if at_start and token == 0 and current:
            expected, current = [*expected, current], []
        current = [*current, token]
        if not at_start and token == 0:
            expected, current = [*expected, current], []
    expected += [current] if current else []
    found = split_at([np.array(piece, np.int64) for piece in pieces], 0, at_start)
    assert [ids.tolist() for ids in found] == expected


@pytest.mark.parametrize("magic, version, dtype", [(20240520, 1, "<u2"), (20240801, 7, "<u4")])
def test_a_bin_file_with_the_header_of_llm_c(magic, version, dtype, tmp_path):
    header = np.zeros(256, "<i4")
    ids = np.array([2047, 5, 6, 2047, 7], dtype)
    header[:3] = magic, version, len(ids)
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids.tobytes())
    found = nanogpt.read([tmp_path / "a.bin"], ReadOptions(2047, 2048))
    assert [document.ids.tolist() for document in found] == [[2047, 5, 6], [2047, 7]]
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids.tobytes()[:-2])
    with pytest.raises(UserError, match="truncated"):
        list(nanogpt.read([tmp_path / "a.bin"], ReadOptions(2047, 2048)))


def test_wider_ids_are_not_read_as_pairs_of_16_bits(tmp_path):
    ids = np.tile([5, 6, 7, 2047], 20)
    for dtype in ("<u4", "<i8"):
        (tmp_path / "a.bin").write_bytes(ids.astype(dtype).tobytes())
        with pytest.raises(UserError, match=r"every second id is 0(.|\n)*--dtype uint32"):
            list(nanogpt.read([tmp_path / "a.bin"], ReadOptions(2047, 2048)))
        found = nanogpt.read([tmp_path / "a.bin"], ReadOptions(2047, 2048, dtype=np.dtype(dtype).name))
        assert [document.ids.tolist() for document in found] == [[5, 6, 7, 2047]] * 20


@pytest.mark.parametrize(
    "lengths, offsets, first",
    [
        ([-3, 2], [0, 6], [0, 1, 2]), ([3, 2], [-2, 6], [0, 1, 2]), ([3, 2], [0, 6], [1, 2]),
        ([3, 2], [0, 6], [0, 1]), ([3, 2], [0, 6], [0, 1, 7]), ([3, 2], [0, 6], [0, 2, 1, 2]),
        ([3, 2], [0, 5], [0, 1, 2]),
    ],
)  # fmt: skip
def test_a_damaged_index_of_megatron_is_refused(lengths, offsets, first, tmp_path):
    def read(lengths, offsets, first):
        head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, len(lengths), len(first))
        numbers = np.array(lengths, "<i4").tobytes() + np.array(offsets + first, "<i8").tobytes()
        (tmp_path / "m.idx").write_bytes(head + numbers)
        (tmp_path / "m.bin").write_bytes(np.arange(40, dtype="<u2").tobytes())
        found = megatron.read(megatron.find(str(tmp_path / "m")), ReadOptions(0, 99))
        return [document.ids.tolist() for document in found]

    assert read([3, 2], [0, 6], [0, 1, 2]) == [[0, 1, 2], [3, 4]]
    with pytest.raises(UserError, match="not those of a whole file"):
        read(lengths, offsets, first)


@pytest.mark.parametrize("damage", ["empty file", "samples", "column_names", "column_encodings"])
def test_damaged_mds_is_refused(damage, built, tmp_path):
    export_shards(str(built), tmp_path / "out", "mds")
    folder = tmp_path / "out" / "train"
    if damage == "empty file":
        next(folder.glob("*.mds")).write_bytes(b"")
    else:
        index = json.loads((folder / "index.json").read_text())
        del index["shards"][0][damage]
        (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="cannot be read"):
        list(mds.read(mds.find(str(folder)), ReadOptions(0, 4096)))
