"""Rows of every kind of file: JSON arrays, columns of text, CSV, archives, byte order marks."""

from __future__ import annotations

import csv
import io
import json
import lzma
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from gaguide.data.build.documents import read_span
from gaguide.data.build.json_rows import has_row_per_line, rows_of_values
from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.sources import Span, find_source
from gaguide.errors import UserError
from tests.data.test_data_build import archive, lines, make, zstd
from tests.data.test_data_inputs import THREE, documents

__all__ = ["make"]  # a fixture

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv"])
def test_byte_order_marks_are_not_text(name, tmp_path):
    content = {"a.txt": BOM + b"hello world", "a.csv": BOM + b"text,n\nhello world,1\n"}.get(
        name, BOM + lines(["hello world"]) + BOM + lines(["joined"])
    )
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
    if not ending:
        _, manifest = make(tmp_path / name, rows=2, validation_fraction=0)
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
        if "view" in str(kind) and Version(pa.__version__) < Version("21"):
            pytest.skip("pyarrow before 21 reads views in Parquet files but does not write them")
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
