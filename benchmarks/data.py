"""The data plane compared with others, each pair in one run on one machine.

    python benchmarks/data.py build  [--cores 2] [--copies 4] [--source FILES]
    python benchmarks/data.py read   [--length 1024] [--batch 32] [--batches 200]

build   gaguide compared with datasets.map with the fast tokenizer on as many processes
read    one batch of blocks in shuffled order: gaguide, raw numpy memmap at random offsets with inputs and
        shifted targets, datasets (Arrow, numpy format), mosaicml-streaming
Contenders alternate; medians and their ratios to gaguide's are printed with the load of the machine.
mosaicml-streaming is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

OPENWEBTEXT_BYTES = 38e9
VOCABULARY = 50_257


def has_streaming() -> bool:
    """Whether mosaicml-streaming is installed."""
    return importlib.util.find_spec("streaming") is not None


def show(title: str, times: dict[str, list[float]], unit: str, scale: float) -> None:
    """A table of medians and their ratios to gaguide's."""
    load = os.getloadavg()[0]
    table = Table("contender", f"median {unit}", f"least {unit}", "ratio to gaguide", title=title)
    ours = statistics.median(times["gaguide"])
    for name, measured in times.items():
        median = statistics.median(measured)
        table.add_row(name, f"{median * scale:.3g}", f"{min(measured) * scale:.3g}", f"{median / ours:.2f}")
    console = Console(width=110)
    console.print(table)
    console.print(f"load average {load:.1f} on {os.cpu_count()} cores")


def add_source_arguments(command: argparse.ArgumentParser) -> None:
    """Options of what is built."""
    command.add_argument("--copies", type=int, default=4)
    command.add_argument("--source", help="a Parquet file or a folder of them; default: embedded corpus")
    command.add_argument("--tokenizer", help="a folder; default: the embedded corpus' own")


@contextmanager
def prepared_source(arguments: argparse.Namespace) -> Iterator[tuple[Path, str, Path, int]]:
    """A folder for the block, the tokenizer, and the text as a file in that folder with its size in bytes."""
    from gaguide.data.build.demo_corpus import build_embedded_corpus

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = arguments.tokenizer or str(build_embedded_corpus(folder / "embedded") / "tokenizer")
        source = folder / "source.jsonl"
        yield folder, tokenizer, source, write_source(source, arguments.source, arguments.copies)


# build


def build(arguments: argparse.Namespace) -> None:
    with prepared_source(arguments) as (folder, tokenizer, source, size):
        times: dict[str, list[float]] = {"gaguide": [], "datasets.map": []}
        for turn in range(arguments.repeats):
            for name, contender in (("gaguide", build_ours), ("datasets.map", build_datasets)):
                begun = time.perf_counter()
                contender(source, tokenizer, folder / f"{name}-{turn}", arguments.cores)
                times[name].append(time.perf_counter() - begun)
        show(f"build, {size / 1e6:.0f} MB on {arguments.cores} cores", times, "s", 1)
        rate = size / statistics.median(times["gaguide"]) / arguments.cores
        for cores in (2, 16, 64):
            hours = OPENWEBTEXT_BYTES / (rate * cores) / 3600
            print(f"OpenWebText at this rate on {cores} cores: {hours:.2f} h")


def write_source(path: Path, files: str | None, copies: int) -> int:
    """`copies` of the text of Parquet files (default: the embedded corpus, 50 times) as JSONL; its bytes."""
    from gaguide.data.build.python_reference import embedded_documents

    if files:
        import pyarrow.dataset

        texts = pyarrow.dataset.dataset(files).to_table(columns=["text"])["text"].to_pylist()
    else:
        texts = list(embedded_documents()) * 50
    with path.open("w", encoding="utf-8") as out:
        for _ in range(copies):
            out.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return sum(len(text.encode()) for text in texts) * copies


def build_ours(source: Path, tokenizer: str, output: Path, cores: int) -> None:
    from gaguide.data import BuildRequest, build_shards

    # As many parts as keep all cores busy to the end.
    tokens = max(100_000, source.stat().st_size // 4 // (4 * cores))
    build_shards(BuildRequest((str(source),), output, tokenizer, shard_tokens=tokens, workers=cores))


def build_datasets(source: Path, tokenizer: str, output: Path, cores: int) -> None:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if cores > 1 else "true"
    fast = AutoTokenizer.from_pretrained(tokenizer)

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [[*ids, fast.eos_token_id] for ids in fast(rows["text"])["input_ids"]]}

    rows = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(output))
    rows.map(
        encode, batched=True, num_proc=cores if cores > 1 else None, remove_columns=["text"]
    ).save_to_disk(str(output / "encoded"))


# read


def read(arguments: argparse.Namespace) -> None:
    length, batch = arguments.length, arguments.batch
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ids = np.random.default_rng(0).integers(0, VOCABULARY, 16 * 2_000_000 // length * length, np.uint16)
        contenders = {
            "gaguide": ours_batches(folder, ids, length, batch),
            "numpy memmap, x and y": memmap_batches(folder, ids, length, batch),
            "datasets, numpy": datasets_batches(folder, ids, length, batch),
        }
        if has_streaming():
            contenders["mosaicml-streaming"] = streaming_batches(folder, ids, length, batch)
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for batches in contenders.values():  # every contender opens its files, and sees each block once
            for _ in range(len(ids) // length // batch):
                next(batches)
        for _ in range(arguments.repeats):
            for name, batches in contenders.items():
                begun = time.perf_counter()
                for _ in range(arguments.batches):
                    next(batches)
                times[name].append((time.perf_counter() - begun) / arguments.batches)
        show(f"read {batch} blocks of {length} tokens", times, "µs", 1e6)


def ours_batches(folder: Path, ids: np.ndarray, length: int, batch: int) -> Iterator[object]:
    from gaguide.data import BlockOrder, BlockStore, rank_micro_batches

    write_shards(folder / "shards", np.split(ids, 16))
    store = BlockStore(folder / "shards", "train", length)
    order = BlockOrder(store.shard_blocks, 0)
    step = 0
    while True:
        yield store.read(rank_micro_batches(order, step, batch, batch, 0, 1)[0])
        step += 1


def write_shards(folder: Path, shards: list[np.ndarray]) -> None:
    """A folder of shards with these ids, in documents of 1,000."""
    from gaguide.data.format.shards import shard_name, write_shard

    folder.mkdir()
    infos = []
    for index, ids in enumerate(shards):
        documents = np.array_split(ids, max(1, len(ids) // 1000))
        infos.append(write_shard(folder / shard_name("train", index), documents, ids.dtype, "benchmark"))
    write_benchmark_manifest(folder, infos)


def write_benchmark_manifest(folder: Path, infos: list[object]) -> None:
    from gaguide.data.format.manifest import SCHEMA_VERSION, Manifest, write_manifest

    documents, tokens = sum(info.documents for info in infos), sum(info.tokens for info in infos)
    write_manifest(
        folder,
        Manifest(
            schema_version=SCHEMA_VERSION,
            source="benchmark",
            revision=None,
            documents=documents,
            tokens=tokens,
            dropped={},
            vocab_size=VOCABULARY,
            eos_token_id=VOCABULARY - 1,
            tokenizer_fingerprint="benchmark",
            token_dtype="uint16",
            splits={"train": tuple(infos)},
        ),
    )


def memmap_batches(folder: Path, ids: np.ndarray, length: int, batch: int) -> Iterator[object]:
    ids.tofile(folder / "ids.bin")
    random = np.random.default_rng(0)
    while True:
        data = np.memmap(folder / "ids.bin", np.uint16, "r")
        starts = random.integers(0, len(data) - length, batch)
        x_BT = np.stack([data[start : start + length].astype(np.int64) for start in starts])
        y_BT = np.stack([data[start + 1 : start + 1 + length].astype(np.int64) for start in starts])
        yield x_BT, y_BT


def datasets_batches(folder: Path, ids: np.ndarray, length: int, batch: int) -> Iterator[object]:
    import datasets

    features = datasets.Features({"ids": datasets.List(datasets.Value("uint16"), length=length)})
    rows = datasets.Dataset.from_dict({"ids": ids.reshape(-1, length)}, features=features)
    rows.save_to_disk(str(folder / "datasets"))
    rows = datasets.load_from_disk(str(folder / "datasets")).with_format("numpy").shuffle(seed=0)
    at = 0
    while True:
        yield rows[at : at + batch]["ids"].astype(np.int64)
        at = (at + batch) % (len(rows) - batch)


def streaming_batches(folder: Path, ids: np.ndarray, length: int, batch: int) -> Iterator[object]:
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    with MDSWriter(out=str(folder / "mds"), columns={"ids": f"ndarray:uint16:{length}"}) as writer:
        for row in ids.reshape(-1, length):
            writer.write({"ids": row})
    rows = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=batch)
    while True:
        waiting = []
        for row in rows:
            waiting.append(row["ids"])
            if len(waiting) == batch:
                yield np.stack(waiting).astype(np.int64)
                waiting = []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build")
    command.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    add_source_arguments(command)
    command = commands.add_parser("read")
    command.add_argument("--length", type=int, default=1024)
    command.add_argument("--batch", type=int, default=32)
    command.add_argument("--batches", type=int, default=200)
    for command in commands.choices.values():
        command.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    {"build": build, "read": read}[arguments.command](arguments)


if __name__ == "__main__":
    main()
