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

from gaguide.data import BuildRequest, build_shards, read_manifest
from gaguide.data.exchange.export import export_shards
from gaguide.data.exchange.formats import FORMATS
from gaguide.data.exchange.importing import ImportRequest, import_shards
from gaguide.data.format.shards import open_shard
from gaguide.data.read.verify import verify
from gaguide.errors import UserError
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
    with pytest.raises(UserError, match=r"cannot store the marks(.|\n)*--without-marks"):
        export_shards(str(tmp_path / "s"), tmp_path / "mds", "mds")
    record = export_shards(str(tmp_path / "s"), tmp_path / "mds", "mds", without_marks=True)
    assert record.marks == () and read_manifest(tmp_path / "s").marks
    with pytest.raises(UserError, match="--joined"):
        import_shards(
            replace(request_of(tmp_path / "out", "parquet", tmp_path / "x", tokenizer_folder), joined=True)
        )


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
    with pytest.raises(UserError, match="no id marks the end of these documents"):
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
