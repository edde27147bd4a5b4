"""Corpora that are tokenised already: round trips by every format, and the files of the real libraries."""

from __future__ import annotations

import filecmp
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaguide.data import BuildRequest, build_shards, read_manifest
from gaguide.data.exchange import mds, nanogpt
from gaguide.data.exchange.export import export_shards
from gaguide.data.exchange.format import ReadOptions, WriteOptions, split_at
from gaguide.data.exchange.formats import FORMATS, find_format
from gaguide.data.exchange.importing import ImportRequest, import_shards
from gaguide.data.format.shards import Document, open_shard
from gaguide.data.read.verify import verify
from gaguide.errors import UserError
from tests.data.exchange.make import DOCUMENTS
from tests.data.test_data_cli import call

GOLDEN = Path(__file__).parent / "exchange"
SPLIT_NAMES = {
    "nanogpt": {"train": "train.bin", "validation": "val.bin"},
    "megatron": {"train": "train", "validation": "validation"},
    "mds": {"train": "train", "validation": "validation"},
    "parquet": {"train": "train-*.parquet", "validation": "validation-*.parquet"},
}


def chained(lists):
    return list(itertools.chain.from_iterable(lists))


def documents_of(folder):
    manifest = read_manifest(folder)
    found = {}
    for split, infos in manifest.splits.items():
        found[split] = []
        for info in infos:
            shard = open_shard(folder / info.file, info, manifest.tokenizer_fingerprint)
            for start, end in zip(shard.offsets, shard.offsets[1:]):
                marks = None if shard.marks is None else shard.marks[start:end].tolist()
                found[split].append((shard.tokens[start:end].tolist(), marks))
    return found


@pytest.fixture(scope="module")
def built(jsonl, tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "shards"
    build_shards(
        BuildRequest(
            (str(jsonl),), folder, str(tokenizer_folder), shard_tokens=8_000, validation_fraction=0.1
        )
    )
    return folder


def request_of(export, name, output, tokenizer):
    names = SPLIT_NAMES[name]
    return ImportRequest(
        (str(export / names["train"]),), output, str(tokenizer), name,
        validation=(str(export / names["validation"]),), shard_tokens=5_000,
    )  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_round_trip_keeps_every_document_and_every_byte(name, built, tmp_path):
    record = export_shards(str(built), tmp_path / "out", name)
    manifest = read_manifest(built)
    assert sum(record.tokens.values()) == manifest.tokens and record.fingerprint == manifest.fingerprint
    tokenizer = tmp_path / "out" / "tokenizer"
    imported = import_shards(request_of(tmp_path / "out", name, tmp_path / "back", tokenizer))
    assert documents_of(tmp_path / "back") == documents_of(built)
    assert len(imported.splits["train"]) > len(manifest.splits["train"])
    assert imported.separator_token_id == manifest.separator_token_id and imported.bos_token_id is None
    assert imported.tokenizer_fingerprint == manifest.tokenizer_fingerprint
    assert all(finding is None for _, finding in verify(tmp_path / "back"))
    export_shards(str(tmp_path / "back"), tmp_path / "again", name)
    compared = filecmp.dircmp(tmp_path / "out", tmp_path / "again", ignore=["export.json"])
    files = [file for file in compared.common_files if name != "parquet"]
    match, *wrong = filecmp.cmpfiles(tmp_path / "out", tmp_path / "again", files, shallow=False)
    assert wrong == [[], []] and len(match) == len(files)
    assert not compared.left_only and not compared.right_only
    for split in ("train", "validation") if name == "mds" else ():
        inner = filecmp.dircmp(tmp_path / "out" / split, tmp_path / "again" / split)
        assert inner.same_files and not inner.diff_files
    # Repeated commands do nothing.
    before = (tmp_path / "back" / "manifest.json").stat().st_mtime_ns
    assert import_shards(request_of(tmp_path / "out", name, tmp_path / "back", tokenizer)) == imported
    assert export_shards(str(built), tmp_path / "out", name) == record
    assert (tmp_path / "back" / "manifest.json").stat().st_mtime_ns == before


def test_marks_survive_parquet_and_are_refused_elsewhere(tokenizer_folder, tmp_path):
    rows = [{"text": f"it is not {at}", "scope": [[6, 9]]} for at in range(30)]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = BuildRequest((str(source),), tmp_path / "s", str(tokenizer_folder), spans=("scope",))
    build_shards(replace(request, validation_fraction=0.3))
    export_shards(str(tmp_path / "s"), tmp_path / "out", "parquet")
    imported = import_shards(request_of(tmp_path / "out", "parquet", tmp_path / "back", tokenizer_folder))
    assert imported.marks == ("scope",) and documents_of(tmp_path / "back") == documents_of(tmp_path / "s")
    with pytest.raises(UserError, match=r"no room for the marks(.|\n)*--without-marks"):
        export_shards(str(tmp_path / "s"), tmp_path / "mds", "mds")
    record = export_shards(str(tmp_path / "s"), tmp_path / "mds", "mds", without_marks=True)
    assert record.marks == () and read_manifest(tmp_path / "s").marks
    with pytest.raises(UserError, match="--joined"):
        import_shards(
            replace(request_of(tmp_path / "out", "parquet", tmp_path / "x", tokenizer_folder), joined=True)
        )


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


def test_a_bin_file_with_the_header_of_llm_c(tmp_path, tokenizer_folder):
    header = np.zeros(256, "<i4")
    ids = np.array([2047, 5, 6, 2047, 7], "<u2")
    header[:3] = 20240520, 1, len(ids)
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids.tobytes())
    found = nanogpt.read([tmp_path / "a.bin"], ReadOptions(2047, 2048))
    assert [document.ids.tolist() for document in found] == [[2047, 5, 6], [2047, 7]]
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids.tobytes()[:-2])
    with pytest.raises(UserError, match="truncated"):
        list(nanogpt.read([tmp_path / "a.bin"], ReadOptions(2047, 2048)))


def test_rows_of_blocks_are_joined_and_split_into_documents(built, tokenizer_folder, tmp_path):
    stream = chained(ids for ids, _ in documents_of(built)["train"])
    rows = [stream[at : at + 64] for at in range(0, len(stream), 64)]
    pq.write_table(pa.table({"ids": pa.array(rows, pa.list_(pa.int32()))}), tmp_path / "a.parquet")
    request = ImportRequest(
        (str(tmp_path / "a.parquet"),), tmp_path / "o", str(tokenizer_folder), "parquet", column="ids",
        joined=True, validation_fraction=0,
    )  # fmt: skip
    import_shards(request)
    assert documents_of(tmp_path / "o")["train"] == documents_of(built)["train"]
    as_rows = import_shards(replace(request, joined=False, output=tmp_path / "rows"))
    assert as_rows.documents == len(rows) and as_rows.separator_token_id is None
    with pytest.raises(UserError, match="end with no id of their own"):
        export_shards(str(tmp_path / "rows"), tmp_path / "x", "nanogpt")
    with pytest.raises(UserError, match="--joined was True, now False"):
        import_shards(replace(request, joined=False))


def test_held_out_documents_are_chosen_by_their_content(built, tokenizer_folder, tmp_path):
    export_shards(str(built), tmp_path / "out", "megatron")
    whole = replace(request_of(tmp_path / "out", "megatron", tmp_path / "a", tokenizer_folder), validation=())
    first = import_shards(replace(whole, validation_fraction=0.3))
    assert 0.1 < first.splits["validation"][0].documents / first.documents < 0.5
    prefix = str(tmp_path / "out" / "train")
    both = (str(tmp_path / "out" / "validation"), prefix)
    import_shards(replace(whole, train=both, output=tmp_path / "b", validation_fraction=0.3))
    held_out = {tuple(ids) for ids, _ in documents_of(tmp_path / "a")["validation"]}
    assert held_out <= {tuple(ids) for ids, _ in documents_of(tmp_path / "b")["validation"]}


def test_an_interrupted_import_and_export_leave_no_folder_and_start_anew(built, tokenizer_folder, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_shards(str(built), tmp_path / "out", "parquet", on_progress=stop)
    assert not (tmp_path / "out").exists()
    export_shards(str(built), tmp_path / "out", "parquet")
    request = request_of(tmp_path / "out", "parquet", tmp_path / "back", tokenizer_folder)
    with pytest.raises(KeyboardInterrupt):
        import_shards(request, stop)
    assert not (tmp_path / "back").exists()
    import_shards(request)
    assert documents_of(tmp_path / "back") == documents_of(built)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "back"}
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        import_shards(replace(request, output=tmp_path / "taken"))
    assert not (tmp_path / ".taken.partial").exists()


def test_faults_name_the_file(built, tokenizer_folder, tmp_path):
    export = tmp_path / "out"
    export_shards(str(built), export, "megatron")

    def problem(name, file, **changes):
        request = ImportRequest((str(file),), tmp_path / "x", str(tokenizer_folder), name)
        with pytest.raises(UserError) as caught:
            import_shards(replace(request, **changes))
        assert not (tmp_path / "x").exists()
        return str(caught.value)

    (export / "train.bin").write_bytes((export / "train.bin").read_bytes()[:-2])
    assert "train.bin" in (said := problem("megatron", export / "train")) and "truncated" in said
    (export / "train.idx").write_bytes(b"nothing")
    assert "not the index" in problem("megatron", export / "train")
    assert "no such .idx file" in problem("megatron", export / "none")
    (tmp_path / "odd.bin").write_bytes(b"123")
    assert "truncated" in problem("nanogpt", tmp_path / "odd.bin")
    np.array([1, 5000], np.uint16).tofile(tmp_path / "large.bin")
    assert "holds the id 5,000" in problem("nanogpt", tmp_path / "large.bin")
    (tmp_path / "empty.bin").touch()
    assert "hold no document" in problem("nanogpt", tmp_path / "empty.bin")
    shutil.copytree(GOLDEN / "mds", tmp_path / "mds")
    shard = tmp_path / "mds" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "shard.00000.mds" in (said := problem("mds", tmp_path / "mds")) and "truncated" in said
    shard.unlink()
    assert "does not exist" in problem("mds", tmp_path / "mds")
    assert "without their dtype" in problem("mds", GOLDEN / "bytes")
    assert "is not a column" in problem("mds", GOLDEN / "mds", column="ids")
    pq.write_table(pa.table({"input_ids": [[1.5]]}), tmp_path / "a.parquet")
    assert "not lists of integers" in problem("parquet", tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"123")
    assert "b.parquet" in problem("parquet", tmp_path / "b.parquet")


@pytest.mark.parametrize(("name", "ending"), [("nanogpt", "bin"), ("parquet", "parquet")])
def test_held_out_files_of_a_folder_are_not_trained_on(name, ending, built, tokenizer_folder, tmp_path):
    export_shards(str(built), tmp_path / "out", name)
    request = request_of(tmp_path / "out", name, tmp_path / "x", tokenizer_folder)
    for train in (str(tmp_path / "out"), str(tmp_path / "out" / f"*.{ending}")):
        with pytest.raises(UserError, match=r"named as held-out ones(.|\n)*--validation"):
            import_shards(replace(request, train=(train,), validation=()))


def test_mistakes_are_reported_at_once(tokenizer_folder, tmp_path):
    request = ImportRequest(
        ("none.bin",), tmp_path / "o", str(tokenizer_folder), "nanogpt", column="ids", joined=True,
        dtype="int8", validation=("other.bin",), validation_fraction=0.1, separator="<none>", shard_tokens=0,
    )  # fmt: skip
    with pytest.raises(UserError) as caught:
        import_shards(request)
    assert sorted(fault.field for fault in caught.value.faults) == [
        "--column", "--dtype", "--joined", "--separator", "--shard-tokens", "--validation-fraction",
        "FILES", "FILES",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"--from(.|\n)*nanogpt"):
        import_shards(replace(request, format="nanogtp"))


def test_the_commands(built, tmp_path):
    code, output = call("export", built, "--to", "megatron", "--output", tmp_path / "out")
    assert code == 0 and "train" in output and "(megatron)" in output
    options = (
        "--from",
        "megatron",
        "--tokenizer",
        tmp_path / "out" / "tokenizer",
        "--output",
        tmp_path / "in",
    )
    code, output = call(
        "import", tmp_path / "out" / "train", *options, "--validation", tmp_path / "out" / "validation"
    )
    assert code == 0 and "100 documents" in output and "begins      '" in output
