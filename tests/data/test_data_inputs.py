"""Every kind of input gives its documents, and what is left out is counted and described."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gaguide.data import BuildRequest, Manifest, build_shards
from gaguide.data.build.documents import read_span
from gaguide.data.build.kinds import kind_of
from gaguide.data.build.parts import split_into_parts
from gaguide.data.build.row_fields import RowFields
from gaguide.data.build.sources import Span, find_source
from gaguide.errors import UserError, is_signed, mask_credentials
from tests.data.test_data_build import lines, make

__all__ = ["make"]  # a fixture

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
            make(f"{address}/a.jsonl?X-Amz-Date={time}&X-Amz-Signature=SECRET{time}", validation_fraction=0)
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


# -- Kinds --


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
