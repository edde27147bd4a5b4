"""Every kind of input gives its documents, and what is left out is counted and described."""

from __future__ import annotations

import csv
import io
import json
import lzma
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaguide.data import BuildRequest, Manifest, build_shards
from gaguide.data.build.documents import read_span
from gaguide.data.build.json_rows import has_row_per_line, rows_of_values
from gaguide.data.build.kinds import kind_of
from gaguide.data.build.parts import split_into_parts
from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.sources import Span, find_source
from gaguide.errors import UserError, is_signed, mask_credentials
from tests.data.test_data_build import archive, lines, make, tokens_of, zstd

__all__ = ["make"]  # a fixture

BOM = b"\xef\xbb\xbf"
THREE = ["first document", "second document", "third document"]


def documents(*sources: Path | str, field: str = "text") -> list[object]:
    """The rows that a build of these sources would read."""
    source = find_source(list(map(str, sources)), None, None)
    parts = split_into_parts(source, RowFields(field), None, 10**6)
    rows = [row for part in parts for span in part.spans for row in read_span(span, RowFields(field))]
    return [row.decode() if isinstance(row, bytes) else str(row) for row in rows]


# -- Names: links, hidden files, several kinds, output inside the source --


def test_linked_folders_are_read_once(tmp_path):
    """A link to a folder elsewhere is followed; a loop, and a second link to the same folder, end."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jsonl").write_bytes(lines(THREE))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "z.jsonl").write_bytes(lines(["fourth"]))
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    (folder / "sub2").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "missing")
    assert documents(folder) == [*THREE, "fourth"]
    left_out = find_source([str(folder)], None, None).left_out
    assert left_out == {"broken link or special file": 1, "folder that a link names a second time": 2}


def test_hidden_temporary_and_other_files_are_left_out_and_counted(make, tmp_path):
    folder = tmp_path / "folder"
    for name in (".hidden.jsonl", "._a.jsonl", "a.jsonl.tmp", "b.jsonl~", "__MACOSX/a.jsonl", ".git/a.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(lines(["wrong"]))
    (folder / "a.jsonl").write_bytes(lines(THREE))
    (folder / "README.md").write_text("about")
    (folder / "notes.txt").write_text("about")
    _, manifest = make(folder, validation_fraction=0)
    assert manifest.documents == 3
    assert manifest.left_out == {
        "hidden or temporary": 6,
        "of unknown kind (.md)": 1,
        "text, because the folder is read as jsonl": 1,
    }


def test_output_inside_the_source(make, tokenizer_folder, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(THREE))
    with pytest.raises(UserError, match="contains the output folder"):
        build_shards(BuildRequest((str(tmp_path),), tmp_path / "out", str(tokenizer_folder)))
    request = BuildRequest(
        (f"{tmp_path}/**/*.json*",), tmp_path / "out", str(tokenizer_folder), validation_fraction=0
    )
    assert build_shards(request).documents == 3
    assert build_shards(request).documents == 3, "the tokenizer's JSON in the output became a source"


def test_a_glob_reads_the_folders_that_it_names(tmp_path):
    for name, text in zip(("a", "b"), THREE):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_bytes(lines([text]))
    assert documents(tmp_path / "*") == THREE[:2]
    assert documents(tmp_path / "**" / "*.jsonl") == THREE[:2]


@pytest.mark.parametrize(
    "name", ["s3:__x.jsonl", "a::b.jsonl", "a#b?c.jsonl", "a[1]*.jsonl", "100%.jsonl", "é.jsonl"]
)
def test_local_names_that_look_like_addresses(name, tmp_path):
    (tmp_path / name).write_bytes(lines(THREE))
    assert documents(tmp_path / name) == THREE
    assert documents(tmp_path) == THREE
    (tmp_path / "http:" / "host").mkdir(parents=True)
    shutil.move(tmp_path / name, tmp_path / "http:" / "host" / name)
    os.chdir(tmp_path)
    assert documents(f"http://host/{name}") == THREE, "as `wget -x` makes it"


def test_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(lines(THREE))
    assert documents("~/a.jsonl") == documents("~/*.jsonl") == documents("~") == THREE


# -- Addresses --


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:PASSWORD@host/a.jsonl", "http://***@host/a.jsonl"),
        ("https://user:p@SS@host/a", "https://***@host/a"),
        ("s3://key:SECRET@bucket/a", "s3://***@bucket/a"),
        ("https://h/a?X-Amz-Signature=SECRET&x=1", "https://h/a?X-Amz-Signature=***&x=1"),
        ("https://h/a?sig=SECRET%2b#top", "https://h/a?sig=***#top"),
        ("https://h/a?a=1&access_token=SECRET", "https://h/a?a=1&access_token=***"),
        ("mail me@host about http://host/a@b", "mail me@host about http://host/a@b"),
        ("'http://u:PASSWORD@h/a' and 'ftp://u:PASSWORD@h'", "'http://***@h/a' and 'ftp://***@h'"),
        ("simplecache::https://u:PASSWORD@h/a", "simplecache::https://***@h/a"),
    ],
)
def test_credentials_are_masked(address, shown):
    assert mask_credentials(address) == shown == mask_credentials(shown)
    assert is_signed(address) == ("?" in address)


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """The address of a server of `folder`, which ignores queries."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_signed_addresses_and_credentials(make, tmp_path):
    """Read by the name before the query; the manifest shows no secret, and no signature is part of it."""
    pytest.importorskip("aiohttp")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.jsonl").write_bytes(lines(THREE))
    with web_server(tmp_path / "web") as address:
        built = [
            make(
                f"{address}/a.jsonl?X-Amz-Date={time}&X-Amz-Signature=SECRET{time}",
                validation_fraction=0,
            )
            for time in (1, 2)
        ]
        folder, _ = make(address.replace("://", "://user:SECRET@") + "/a.jsonl", validation_fraction=0)
        with pytest.raises(UserError) as caught:
            make(address.replace("://", "://user:SECRET@") + "/missing.jsonl")
    assert "SECRET" not in str(caught.value)
    for each in (folder, built[0][0]):
        assert "SECRET" not in (each / "manifest.json").read_text()
    assert [manifest.documents for _, manifest in built] == [3, 3]
    assert built[0][1].build_id == built[1][1].build_id


# -- JSON --


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv"])
def test_byte_order_marks_are_not_text(name, tmp_path):
    content = {
        "a.txt": BOM + b"hello world",
        "a.csv": BOM + b"text,n\nhello world,1\n",
    }.get(name, BOM + lines(["hello world"]) + BOM + lines(["joined"]))
    (tmp_path / name).write_bytes(content)
    assert documents(tmp_path / name) == ["hello world", "joined"][: 2 if "json" in name else 1]


ROWS = [{"text": text, "n": 1} for text in THREE]
ARRAYS = {
    "row per line.json": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]",
    "one line.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=1),
    "mark.json": "\ufeff" + json.dumps(ROWS, indent=1),
    "named lines.jsonl": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "concatenated.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "lines.json": "\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("ending", ["", ".xz", ".zst"])
def test_json_arrays(name, ending, make, tmp_path):
    compress = {"": bytes, ".xz": lzma.compress, ".zst": zstd}[ending]
    (tmp_path / f"{name}{ending}").write_bytes(compress(ARRAYS[name].encode()))
    assert documents(tmp_path / f"{name}{ending}") == THREE
    _, manifest = make(tmp_path / f"{name}{ending}", rows=2, validation_fraction=0)
    assert manifest.documents == 2


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=8), st.sampled_from([None, 1]), st.integers(1, 7))
def test_arrays_are_read_in_chunks_of_any_size(values, indent, size):
    class Slow(io.BytesIO):
        def read(self, _: int | None = None) -> bytes:  # type: ignore[override]
            return super().read(size)

    rows = [{"text": f"x{json.dumps(value)}", "value": value} for value in values]
    stream = Slow(json.dumps(rows, indent=indent, ensure_ascii=False).encode())
    assert list(rows_of_values(stream, RowFields())) == [row["text"].encode() for row in rows]


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}, {"te', '[{"text": "a"}', '[{"text": "a"}] {}', '[{"text": "a"} x]']
)
def test_a_damaged_array_is_named(content, make, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot be read .*a\.json|a\.json.*cannot be read"):
        make(tmp_path / "a.json")


def test_lists_as_rows_are_not_an_array():
    assert has_row_per_line(b'["a"]\n{"text": "b"}\n', "a.jsonl")
    assert not has_row_per_line(b"[\n1,\n2]", "a.jsonl")


def test_an_absent_field_is_described_before_anything_is_encoded(make, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 1, "meta": {"body": "x", "lang": "en"}, "texts": "y"}\n' * 5)
    with pytest.raises(UserError, match=r"--text-field = 'text'.*\n.*did you mean 'texts'.*meta\.body"):
        make(tmp_path / "a.jsonl")
    assert not list(tmp_path.glob("built-*/.build"))
    assert documents(tmp_path / "a.jsonl", field="meta.body") == ["x"] * 5


# -- Tables --


TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("ending", ["parquet", "file.arrow", "stream.arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_every_arrow_type_of_text(kind, ending, nested, tmp_path):
    values = [*THREE, None, " "]
    strings = pa.array(values, pa.string())
    if pa.types.is_dictionary(kind):
        column = strings.cast(kind.value_type).dictionary_encode().cast(kind)
    else:
        column = (
            pa.array([each.encode() if each else None for each in values], kind)
            if "binary" in str(kind)
            else strings.cast(kind)
        )
    name = "text"
    if nested:
        inner = pa.StructArray.from_arrays([column, pa.array([1] * 5)], ["body", "n"])
        table, name = pa.table({"meta": inner}), "meta.body"
    else:
        table = pa.table({"n": [1] * 5, "text": column})
    path = tmp_path / ending
    if ending == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_file if ending.startswith("file") else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    assert documents(path, field=name) == [*THREE, "not_text", "empty"]


def test_null_structs_have_no_text(tmp_path):
    pq.write_table(pa.table({"meta": [{"text": "a"}, None, {"text": None}]}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", field="meta.text") == ["a", "not_text", "not_text"]


def test_a_column_name_with_a_dot_comes_first(tmp_path):
    pq.write_table(pa.table({"meta.text": ["a"]}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", field="meta.text") == ["a"]


def test_columns_of_nulls(make, tmp_path):
    pq.write_table(pa.table({"text": THREE}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "b.parquet")
    _, manifest = make(tmp_path / "a.parquet", tmp_path / "b.parquet", validation_fraction=0)
    assert (manifest.documents, manifest.dropped) == (3, {"not_text": 2})


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv"])
def test_duplicate_columns_are_refused(ending, make, tmp_path):
    path = tmp_path / f"a.{ending}"
    table = pa.Table.from_arrays([pa.array(THREE), pa.array(THREE)], ["text", "text"])
    if ending == "parquet":
        pq.write_table(table, path)
    elif ending == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("text,text\na,b\n")
    with pytest.raises(UserError, match=r"columns of .* have this name"):
        make(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.xz", "a.tsv.zst"])
def test_csv(name, make, tmp_path):
    texts = ['with "quotes", commas\tand tabs', "two\nlines\r\nof it", "x" * 200_000]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t" if ".tsv" in name else ",")
    writer.writerows([["n", "text"], *([1, text] for text in texts)])
    raw = buffer.getvalue().encode() + (b"1\tcaf\xe9\n1\n" if ".tsv" in name else b"1,caf\xe9\n1\n")
    compress = {"xz": lzma.compress, "zst": zstd}.get(name.rpartition(".")[2], bytes)
    (tmp_path / name).write_bytes(compress(raw))
    assert documents(tmp_path / name) == [*texts, "invalid_utf8", "malformed"]
    with pytest.raises(UserError, match="its columns: n, text"):
        make(tmp_path / name, text_field="body")


# -- Archives --


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return buffer.getvalue()


MEMBERS = {
    "set/0.txt": BOM + b"first document",
    "set/._0.txt": b"resource fork",
    "__MACOSX/set/0.txt": b"resource fork",
    "set/rows.jsonl": lines(["second document"]),
    "set/table.csv": b"text\nthird document\n",
    "set/photo.jpg": b"\xff\xd8",
}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.zst", "a.tar.bz2", "a.tgz"])
def test_archives(name, make, tmp_path):
    pack = {
        "a.zip": zipped,
        "a.tar": lambda files: archive(files, "w"),
        "a.tar.zst": lambda files: zstd(archive(files, "w")),
        "a.tar.bz2": lambda files: archive(files, "w:bz2"),
        "a.tgz": lambda files: archive(files, "w:gz"),
    }[name]
    (tmp_path / name).write_bytes(pack(MEMBERS))
    assert [row for row in documents(tmp_path / name) if row != "other_member"] == THREE
    _, manifest = make(tmp_path / name, validation_fraction=0, max_dropped=0)
    assert (manifest.documents, manifest.dropped) == (3, {"other_member": 3})
    _, manifest = make(tmp_path / name, validation_fraction=0, rows=2)
    assert manifest.documents == 2, "members that are no documents count as no rows"


@pytest.mark.parametrize("has_text", [True, False])
def test_web_datasets(has_text, tmp_path):
    files = {}
    for number, text in enumerate(THREE):
        files[f"{number:06}.json"] = json.dumps({"text": text, "id": number}).encode()
        files[f"{number:06}.jpg"] = b"\xff\xd8"
        if has_text:
            files[f"{number:06}.txt"] = text.encode()
    (tmp_path / "a.tar").write_bytes(archive(files, "w"))
    assert [row for row in documents(tmp_path / "a.tar") if row != "other_member"] == THREE


def test_a_broken_zip_is_named(make, tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(MEMBERS)[:-40])
    with pytest.raises(UserError, match=r"a\.zip.*cannot be read"):
        make(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl.xz", "jsonl"),
        ("A.JSONL.GZ", "jsonl"),
        ("a.tar.zst", "tar"),
        ("x_data.xz", "tar"),
        ("a.zip", "zip"),
        ("a.parquet.gz", None),
        ("a.xz", None),
        ("a.arrow", "arrow"),
        ("a.csv.zst", "csv"),
        ("a.md", None),
    ],
)
def test_kinds_by_name(name, kind):
    assert kind_of(name) == kind


# -- Limits and identity --


def test_too_many_dropped_rows_fail_the_build_and_can_be_allowed(tokenizer_folder, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["one document"]) + b'{"text": ""}\n' * 3)
    options = dict(validation_fraction=0)
    request = BuildRequest((str(path),), tmp_path / "out", str(tokenizer_folder), **options)
    with pytest.raises(UserError, match=r"--max-dropped = 0\.5: 75% of the rows .*3 empty"):
        build_shards(request)
    again = BuildRequest((str(path),), tmp_path / "out", str(tokenizer_folder), max_dropped=0.8, **options)
    assert build_shards(again).dropped == {"empty": 3}


def test_a_changed_source_is_refused(tokenizer_folder, tmp_path):
    """Also when name, size and modification time are the same."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["old text"] * 3))
    stat = path.stat()

    def build() -> Manifest:
        return build_shards(
            BuildRequest((str(path),), tmp_path / "out", str(tokenizer_folder), validation_fraction=0)
        )

    first = build()
    assert first.source_identity == "SHA-256 of the whole content"
    os.utime(path, ns=(1, 1))
    assert build() == first, "a time alone changes nothing"
    path.write_bytes(lines(["new text"] * 3))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match="the content of the source has changed"):
        build()


def test_a_changed_source_is_refused_when_a_build_resumes(tokenizer_folder, tmp_path, monkeypatch):
    import gaguide.data.build.build as module

    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["old text"] * 3))
    request = BuildRequest((str(path),), tmp_path / "out", str(tokenizer_folder), validation_fraction=0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "finish_build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        build_shards(request)
    path.write_bytes(lines(["new text"] * 3))
    with pytest.raises(UserError, match=r"unfinished build .* the content of the source has changed"):
        build_shards(request)


def test_a_source_that_changes_during_the_build_is_refused(tokenizer_folder, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["old text"] * 3))

    def change(progress) -> None:
        if progress.stage == "finishing":
            path.write_bytes(lines(["old text"] * 4))

    request = BuildRequest((str(path),), tmp_path / "out", str(tokenizer_folder), validation_fraction=0)
    with pytest.raises(UserError, match="changed while it was read"):
        build_shards(request, change)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_large_sources_are_identified_by_samples(tmp_path, monkeypatch):
    import gaguide.data.build.identity as module

    monkeypatch.setattr(module, "WHOLE_BYTES", 1_000_000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 2_000_000)
    stat = path.stat()

    def content() -> str:
        return find_source([str(path)], None, None).files[0].content

    first = content()
    assert first.startswith("samples")
    with path.open("r+b") as file:
        file.seek(1_999_999)
        file.write(b"b")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content() != first
    os.utime(path, ns=(1, 1))
    assert content() != first


# -- What begins and ends a document --


@pytest.fixture()
def llama_tokenizer(tokenizer_folder, tmp_path) -> Path:
    """A tokenizer whose post-processor adds <s>, as Llama's does."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    from gaguide.data import load_tokenizer

    backend = load_tokenizer(tokenizer_folder).backend_tokenizer
    backend.add_special_tokens(["<s>", "</s>", "<sep>"])
    ids = {name: backend.token_to_id(name) for name in ("<s>", "</s>")}
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(
        tmp_path / "llama"
    )
    return tmp_path / "llama"


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        ({}, "<s>", "</s>"),
        ({"bos": True, "separator": "none"}, "<s>", None),
        ({"bos": False}, None, "</s>"),
        ({"bos": False, "separator": "<sep>"}, None, "<sep>"),
    ],
)
def test_begin_and_end_of_documents(options, first, last, llama_tokenizer, tmp_path):
    from gaguide.data import load_tokenizer

    (tmp_path / "a.jsonl").write_bytes(lines(THREE))
    request = BuildRequest(
        (str(tmp_path / "a.jsonl"),), tmp_path / "out", str(llama_tokenizer), validation_fraction=0, **options
    )
    manifest = build_shards(request)
    tokenizer = load_tokenizer(llama_tokenizer)
    plain = [tokenizer.encode(text, add_special_tokens=False) for text in THREE]
    before, after = (
        [] if token is None else [tokenizer.convert_tokens_to_ids(token)] for token in (first, last)
    )
    assert tokens_of(tmp_path / "out", "train") == [[*before, *ids, *after] for ids in plain]
    assert [manifest.bos_token_id] == (before or [None]) and [manifest.separator_token_id] == (
        after or [None]
    )
    assert manifest.eos_token_id == (after or [tokenizer.eos_token_id])[0]


def test_impossible_begin_and_end_are_reported_at_once(tokenizer_folder, tmp_path):
    from gaguide.data import load_tokenizer
    from gaguide.data.format.tokenizer import document_ids

    tokenizer = load_tokenizer(tokenizer_folder)
    assert document_ids(tokenizer, None, "eos").bos is None, "GPT-2's adds none"
    tokenizer.bos_token = None
    with pytest.raises(UserError) as caught:
        document_ids(tokenizer, True, "<nothing>")
    assert {fault.field for fault in caught.value.faults} == {"--bos", "--separator"}


# -- Cost --


def test_planning_is_linear_in_files(tmp_path, monkeypatch):
    """Counted, not timed: adding a file to a part must not add up the part's other files again."""
    (tmp_path / "a.txt").write_text("word " * 200)
    [file] = find_source([str(tmp_path / "a.txt")], None, None).files
    reads = [0]
    weight = Span.weight

    class Counting(int):
        def __radd__(self, other):
            reads[0] += 1
            return int(self) + other

        __add__ = __radd__

    import gaguide.data.build.parts as module
    from gaguide.data.build.sources import Source

    monkeypatch.setattr(
        module, "Span", lambda *args, weight=0, **rest: Span(*args, weight=Counting(weight), **rest)
    )
    assert weight == 0
    parts = split_into_parts(Source("", None, (file,) * 2_000), RowFields(), None, 10**6)
    assert len(parts) == 1 and reads[0] <= 4 * 2_000


def test_a_row_group_of_large_rows_is_read_in_small_batches(tmp_path, monkeypatch):
    import gaguide.data.build.table_rows as module

    base = "The quick brown fox jumps over the lazy dog. " * 2_000
    texts = [f"{number} {base}" for number in range(200)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    sizes = []
    rows_of_array = module._rows_of_array
    monkeypatch.setattr(module, "_BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(
        module, "_rows_of_array", lambda rows: (sizes.append(rows.nbytes), rows_of_array(rows))[1]
    )
    [file] = find_source([str(tmp_path / "a.parquet")], None, None).files
    assert [row.decode() for row in read_span(Span(file, 50, 60), RowFields())] == texts[50:60]
    assert documents(tmp_path / "a.parquet") == texts
    assert max(sizes) < 2 << 20
