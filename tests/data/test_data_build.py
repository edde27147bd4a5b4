"""Builds give the same result from every kind of source and any number of workers."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gaguide.data import BuildRequest, Manifest, build_shards, read_manifest
from gaguide.data.build.parts import split_into_parts
from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.sources import find_source
from gaguide.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    """Contents of all files that are not hidden."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if not path.name.startswith(".")
    }


def tokens_of(folder: Path, split: str) -> list[list[int]]:
    paths = sorted(folder.glob(f"{split}-*.arrow"))
    return [ids for path in paths for ids in pa.ipc.open_file(str(path)).read_all()["tokens"].to_pylist()]


@pytest.fixture()
def make(tokenizer_folder, tmp_path):
    """A function that builds sources into a new folder and returns folder and manifest."""

    def made(*sources: Path | str, **options) -> tuple[Path, Manifest]:
        folder = tmp_path / f"built-{len(list(tmp_path.glob('built-*')))}"
        options = {"shard_tokens": 8_000, **options}
        names = tuple(map(str, sources))
        return folder, build_shards(BuildRequest(names, folder, str(tokenizer_folder), **options))

    return made


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def archive(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    """Two frames, as concatenated or parallel compressors write."""
    half = len(content) // 2
    return b"".join(
        pa.compress(piece, codec="zstd", asbytes=True) for piece in (content[:half], content[half:])
    )


def write_source(kind: str, texts: list[str], folder: Path) -> Path:
    """Write the documents as a source of one kind."""
    folder.mkdir()
    files = {f"{number:04d}.txt": text.encode() for number, text in enumerate(texts)}
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=7)
    elif kind == "text":
        for name, content in files.items():
            (folder / name).write_bytes(content)
    elif kind == "openwebtext":
        half = len(texts) // 2
        subsets = [dict(list(files.items())[:half]), dict(list(files.items())[half:])]
        inner = {f"openwebtext/urlsf_subset0{i}_data.xz": archive(s, "w:xz") for i, s in enumerate(subsets)}
        (folder / "openwebtext.tar.xz").write_bytes(archive(inner, "w:xz"))
    else:
        compress = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}
        ending = kind.removeprefix("jsonl")
        (folder / f"a.jsonl{ending}").write_bytes(compress[ending](lines(texts)))
    return folder


@pytest.fixture(scope="module")
def reference(jsonl, tokenizer_folder, tmp_path_factory) -> Path:
    """Shards of all documents, none of them held out."""
    folder = tmp_path_factory.mktemp("reference") / "shards"
    build_shards(
        BuildRequest((str(jsonl),), folder, str(tokenizer_folder), shard_tokens=8_000, validation_fraction=0)
    )
    return folder


KINDS = ["parquet", "jsonl", "jsonl.gz", "jsonl.bz2", "jsonl.zst", "text", "openwebtext"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_documents(kind, make, built_shards, texts, tmp_path):
    first = read_manifest(built_shards)
    folder, manifest = make(write_source(kind, texts, tmp_path / "source"))
    for split in ("train", "validation"):
        assert tokens_of(folder, split) == tokens_of(built_shards, split)
    assert (manifest.documents, manifest.tokens) == (first.documents, first.tokens) == (100, first.tokens)


@pytest.mark.parametrize(
    "kind,rows", [*((kind, 33) for kind in KINDS), ("openwebtext", 1), ("parquet", 100), ("jsonl", 1000)]
)
def test_rows_limits_the_build_to_the_first_rows(kind, rows, make, texts, tmp_path, reference):
    source = write_source(kind, texts, tmp_path / "source")
    folder, manifest = make(source, rows=rows, validation_fraction=0)
    assert manifest.documents == min(rows, 100)
    assert tokens_of(folder, "train") == tokens_of(reference, "train")[:rows]


def test_several_sources_are_read_in_order(make, texts, tmp_path, reference):
    first = write_source("jsonl", texts[:30], tmp_path / "one")
    second = write_source("parquet", texts[30:], tmp_path / "two")
    folder, _ = make(first, second, validation_fraction=0)
    assert tokens_of(folder, "train") == tokens_of(reference, "train")


def test_byte_ranges_split_jsonl_without_loss(texts, tmp_path, make):
    """For any split points: in the middle of lines, at line ends and in blank lines."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n\n" + lines(texts[:25]).replace(b"\n", b"\r\n\n"))
    reference, _ = make(path, shard_tokens=10**6, validation_fraction=0)
    for shard_tokens in (50, 333, 2_000):
        folder, _ = make(path, shard_tokens=shard_tokens, validation_fraction=0)
        assert tokens_of(folder, "train") == tokens_of(reference, "train")


@pytest.mark.processes
def test_the_result_does_not_depend_on_workers(megabytes, tokenizer_folder, tmp_path):
    folders = []
    for workers in (1, 2):
        folder = tmp_path / f"workers-{workers}"
        request = BuildRequest(
            (str(megabytes),), folder, str(tokenizer_folder), rows=2500, shard_tokens=150_000, workers=workers
        )
        build_shards(request)
        folders.append(contents(folder))
    assert folders[0] == folders[1]
    assert sum(name.startswith("train-") for name in folders[0]) >= 4


def test_held_out_documents_do_not_depend_on_order(make, texts, tmp_path):
    forward, _ = make(write_source("jsonl", texts, tmp_path / "a"), validation_fraction=0.3)
    backward, _ = make(write_source("parquet", texts[::-1], tmp_path / "b"), validation_fraction=0.3)
    held_out = tokens_of(forward, "validation")
    assert 10 < len(held_out) < 50
    assert sorted(held_out) == sorted(tokens_of(backward, "validation"))


def test_invalid_documents_are_counted(make, texts, tmp_path):
    path = tmp_path / "bad.jsonl"
    bad = [
        b'{"text": ""}',
        b'{"text": " \\n "}',
        b'{"text": null}',
        b'{"text": 7}',
        b'{"other": "x"}',
        b'["text"]',
        b"{not json",
        b'{"text": "caf\xe9"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
    ]
    path.write_bytes(lines(texts[:5]) + b"\n".join(bad) + b"\n" + lines(texts[5:10]))
    _, manifest = make(path)
    assert manifest.documents == 10
    assert manifest.dropped == {"empty": 2, "invalid_utf8": 2, "malformed": 2, "not_text": 4}


def test_invalid_documents_in_parquet_are_counted(make, texts, tmp_path):
    raw = pa.array([texts[0].encode(), b"caf\xe9", None, b" ", texts[1].encode()], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())  # declared text, not checked
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    _, manifest = make(tmp_path / "a.parquet", max_dropped=0.6)
    assert manifest.documents == 2
    assert manifest.dropped == {"empty": 1, "invalid_utf8": 1, "not_text": 1}


def test_archives_are_not_unpacked_to_disk(make, texts, tmp_path):
    """Members with hostile names and links are read as text or skipped, never unpacked."""
    path = tmp_path / "evil" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name in ("../../escaped.txt", "/tmp/gaguide-escaped.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(texts[0].encode())
            tar.addfile(info, io.BytesIO(texts[0].encode()))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    _, manifest = make(path)
    assert manifest.documents == 2
    assert not list(tmp_path.rglob("*escaped*")) and not Path("/tmp/gaguide-escaped.txt").exists()


@pytest.mark.parametrize(
    "damage", ["truncated.jsonl.gz", "truncated.parquet", "not.jsonl.zst", "cut_data.xz"]
)
def test_a_damaged_source_file_is_named(damage, make, texts, tmp_path):
    path = tmp_path / damage
    content = {
        "truncated.jsonl.gz": gzip.compress(lines(texts))[:-2000],
        "truncated.parquet": b"PAR1" + bytes(1000),
        "not.jsonl.zst": b"this is no zstd frame" * 10,
        "cut_data.xz": lzma.compress(archive({"a.txt": texts[0].encode() * 50}, "w"))[:-100],
    }
    path.write_bytes(content[damage])
    with pytest.raises(UserError, match=damage.replace(".", r"\.")):
        make(path)


def test_repeated_build_does_nothing_and_another_request_is_refused(make, jsonl, tokenizer_folder):
    folder, manifest = make(jsonl)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    again = build_shards(
        BuildRequest((str(jsonl),), folder, str(tokenizer_folder), shard_tokens=8_000, workers=2)
    )
    assert again == manifest
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before
    with pytest.raises(UserError, match="already contains other shards"):
        build_shards(BuildRequest((str(jsonl),), folder, str(tokenizer_folder), shard_tokens=9_000))


def test_second_build_at_the_same_time_is_refused(make, jsonl, tokenizer_folder, tmp_path):
    from filelock import FileLock

    folder = tmp_path / "taken"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="another build"):
        build_shards(BuildRequest((str(jsonl),), folder, str(tokenizer_folder)))


def test_folder_with_other_files_is_refused(jsonl, tokenizer_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(it contains"):
        build_shards(BuildRequest((str(jsonl),), tmp_path, str(tokenizer_folder)))


def test_invalid_options_are_reported_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        build_shards(
            BuildRequest((), tmp_path / "x", None, rows=0, workers=0, shard_tokens=0, validation_fraction=1)
        )
    fields = {fault.field for fault in caught.value.faults}
    assert fields == {
        "--source",
        "--tokenizer",
        "--rows",
        "--workers",
        "--shard-tokens",
        "--validation-fraction",
    }


def test_invalid_sources_are_refused(make, jsonl, tmp_path, texts):
    with pytest.raises(UserError, match="file or folder does not exist"):
        make(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="file or folder does not exist"):
        make(tmp_path / "*.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file of a known kind"):
        make(tmp_path / "empty")
    with pytest.raises(UserError, match="unknown kind"):
        make(__file__)
    with pytest.raises(UserError, match=r"no row at the start of .* has this field\n.*text"):
        make(jsonl, text_field="body")
    with pytest.raises(UserError, match="its columns: text"):
        make(write_source("parquet", texts, tmp_path / "p"), text_field="body")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(UserError, match=r"is a column of int64 in .*, not of text"):
        make(tmp_path / "numbers.parquet")
    with pytest.raises(UserError, match="data sets on the hub only"):
        make(jsonl, split="train")


def test_readme_of_a_data_set_is_not_a_document(texts, tmp_path):
    folder = write_source("parquet", texts, tmp_path / "set")
    (folder / "README.txt").write_text("about")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "b.parquet").write_bytes(b"half")
    assert [file.name for file in find_source([str(folder)], None, None).files] == ["a.parquet"]


def test_parts_have_about_the_requested_size(corpus):
    """A part gives about one shard, so that processes share the work evenly."""
    source = find_source([str(corpus)], None, None)
    parts = split_into_parts(source, RowFields(), None, shard_tokens=250_000)
    weights = [part.weight for part in parts]
    assert 12 <= len(parts) <= 20
    assert max(weights) < 1.3 * min(weights)
    assert sum(span.end - span.first for part in parts for span in part.spans) == 7257


def test_manifest_is_read_back(make, jsonl):
    folder, manifest = make(jsonl)
    assert read_manifest(folder) == manifest
    assert manifest.tokens == sum(shard.tokens for shards in manifest.splits.values() for shard in shards)
