"""MosaicML's streaming data sets (MDS): a folder with `index.json` and shards of samples.

A shard: number of samples (uint32), offset of each sample and the end (uint32), the columns as JSON, then the
samples. A sample: the size of each column that has no fixed one (uint32), then the columns. Shards may be
compressed as files. MosaicML's library reads the files written here, and `streaming.MDSWriter` writes the
same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.data.exchange.format import ReadOptions, WriteOptions, no_column, split_at, unreadable
from gaguide.data.format.shards import Document
from gaguide.errors import UserError, first_line
from gaguide.files import replacing, write_bytes

COLUMN, INDEX = "tokens", "index.json"
SIZE_LIMIT = 1 << 26
"""Bytes of a shard, as in MDSWriter by default."""
_COMPRESSIONS = {"zstd": "zstd", "gz": "gzip", "bz2": "bz2", "br": "brotli"}
_DTYPES = {8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 32: "<u4", 33: "<i4", 64: "<u8", 65: "<i8"}
_BY_NAME = {np.dtype(code).name: code for code in _DTYPES.values()}


def find(name: str) -> list[Path]:
    """The index of a folder and the shards that it names; `UserError` where one is missing."""
    folder = Path(name)
    index = folder / INDEX if folder.is_dir() else folder
    if index.name != INDEX or not index.is_file():
        remedy = f"give the folder that holds its {INDEX}"
        raise UserError.of("FILES", f"is not a folder with {INDEX}", remedy, name)
    try:
        entries = json.loads(index.read_text("utf-8"))["shards"]
        if any(entry["format"] != "mds" for entry in entries):
            raise ValueError("its shards are not of format mds")
        for name in ("samples", "column_names", "column_encodings", "column_sizes"):
            if any(name not in entry for entry in entries):
                raise ValueError(f"a shard has no {name}")
        paths = [_shard_path(index.parent, entry) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(unreadable(index, f"{first_line(error)}")) from None
    for path in paths:
        if not path.is_file():
            raise UserError(unreadable(path, "the index names it, and it does not exist"))
    return [index, *paths]


def _shard_path(folder: Path, entry: Mapping[str, Any]) -> Path:
    """The file of a shard, which may be stored both as it is and compressed."""
    raw = folder / Path(entry["raw_data"]["basename"]).name
    packed = entry.get("zip_data")
    return raw if raw.is_file() or not packed else folder / Path(packed["basename"]).name


def read(paths: list[Path], options: ReadOptions) -> Iterator[Document]:
    """The documents: one a sample, or with `options.joined` split at the separator."""
    samples = _samples(paths, options)
    if options.joined:
        return map(Document, split_at(samples, options.separator))
    return map(Document, samples)


def _samples(paths: list[Path], options: ReadOptions) -> Iterator[np.ndarray]:
    entries: list[Mapping[str, Any]] = []
    for path in paths:
        if path.name == INDEX:
            entries = list(json.loads(path.read_text("utf-8"))["shards"])
            continue
        entry = entries.pop(0)
        names = list(entry["column_names"])
        column = options.column or COLUMN
        if column not in names:
            raise no_column(column, names, path)
        yield from _of_shard(path, entry, names.index(column), options.dtype)


def _of_shard(path: Path, entry: Mapping[str, Any], at: int, dtype: str | None) -> Iterator[np.ndarray]:
    encoding, sizes = entry["column_encodings"][at], entry["column_sizes"]
    decode = _decoder(encoding, dtype, path)
    try:
        content = _content(path, entry)
        count = int(np.frombuffer(content, "<u4", 1)[0])
        offsets = np.frombuffer(content, "<u4", count + 1, 4)
        if count != entry["samples"] or int(offsets[-1]) != len(content):
            raise ValueError("it is truncated, or not the shard that the index names")
        for begin, end in zip(offsets.tolist(), offsets[1:].tolist()):
            start, size = _place(content[begin:end], sizes, at)
            yield decode(content[begin + start : begin + start + size])
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(unreadable(path, first_line(error))) from None


def _content(path: Path, entry: Mapping[str, Any]) -> memoryview:
    if path.name == Path(entry["raw_data"]["basename"]).name:
        mapped: Any = np.memmap(path, np.uint8, "r")
        return memoryview(mapped)
    import pyarrow as pa

    name = str(entry["compression"]).partition(":")[0]
    if name not in _COMPRESSIONS:
        remedy = "decompress the shards first"
        raise UserError.of("FILES", f"{path} is compressed by {name}", remedy, str(path))
    try:
        with pa.OSFile(str(path), "rb") as raw, pa.CompressedInputStream(raw, _COMPRESSIONS[name]) as stream:
            return memoryview(stream.read())
    except (pa.ArrowException, OSError) as error:
        raise UserError(unreadable(path, first_line(error))) from None


def _place(sample: memoryview, sizes: Sequence[int | None], at: int) -> tuple[int, int]:
    """Where a column's bytes are in a sample: their start and number."""
    stated = np.frombuffer(sample, "<u4", sum(not size for size in sizes))
    own, start = iter(stated.tolist()), stated.nbytes
    whole = [size or next(own) for size in sizes]
    return start + sum(whole[:at]), whole[at]


def _decoder(encoding: str, dtype: str | None, path: Path) -> Any:
    """A function from a column's bytes to ids [n]."""
    kind, _, rest = encoding.partition(":")
    if kind == "bytes":
        if dtype is None:
            remedy = "give it with --dtype (llm-foundry wrote int64)"
            raise UserError.of("--dtype", f"{path} holds ids as bytes, without their dtype", remedy)
        return lambda data: np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
    name, _, shape = rest.partition(":")
    if kind != "ndarray" or (name and name not in _BY_NAME) or "," in shape:
        problem = f"its column is of encoding {encoding}, not a row of integers"
        raise UserError(unreadable(path, problem))

    def decode(data: memoryview) -> np.ndarray:
        start, code = (0, _BY_NAME[name]) if name else (1, _DTYPES[data[0]])
        if not shape:
            dimensions, width = data[start] >> 2, 2 ** (data[start] % 4)
            if dimensions != 1:
                raise ValueError(f"a sample has {dimensions} dimensions, where ids have one")
            start += 1 + width
        return np.frombuffer(data, code, offset=start)

    return decode


def write(folder: Path, split: str, documents: Iterable[Document], options: WriteOptions) -> None:
    """Write a split as the folder SPLIT, one sample a document, in the column `tokens`."""
    target = folder / split
    target.mkdir()
    name = options.dtype.name
    columns = {
        "column_encodings": [f"ndarray:{name}"],
        "column_names": [COLUMN],
        "column_sizes": [None],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": SIZE_LIMIT,
        "version": 2,
    }
    head = json.dumps(columns, sort_keys=True).encode()
    shards: list[dict[str, Any]] = []
    samples: list[bytes] = []
    size = before = 4 + 4 + len(head)

    def close() -> None:
        basename = f"shard.{len(shards):05}.mds"
        ends = np.cumsum([0, *map(len, samples)]) + 4 + 4 * (len(samples) + 1) + len(head)
        with replacing(target / basename) as temporary, temporary.open("wb") as file:
            file.write(np.uint32(len(samples)).tobytes() + ends.astype("<u4").tobytes() + head)
            file.writelines(samples)
        raw = {"basename": basename, "bytes": int(ends[-1]), "hashes": {}}
        shards.append({**columns, "raw_data": raw, "samples": len(samples), "zip_data": None})
        samples.clear()

    for document in documents:
        sample = _sample(document.ids.astype(options.dtype, copy=False))
        if samples and size + len(sample) + 4 > SIZE_LIMIT:
            close()
            size = before
        samples.append(sample)
        size += len(sample) + 4
    if samples:
        close()
    write_bytes(target / INDEX, json.dumps({"version": 2, "shards": shards}, sort_keys=True).encode())


def _sample(ids: np.ndarray) -> bytes:
    """One dimension, its length in as few bytes as it needs, and the ids; before them, their total size."""
    power = next(power for power in range(4) if len(ids) < 1 << (8 << power))
    length = np.array(len(ids), f"<u{1 << power}").tobytes()
    value = bytes([1 << 2 | power]) + length + ids.tobytes()
    return np.uint32(len(value)).tobytes() + value
