"""The data plane compared with others, each pair in one run on one machine.

    python benchmarks/data.py build  [--cores 2] [--copies 4] [--source FILES]
    python benchmarks/data.py read   [--length 1024] [--batch 32] [--batches 200]
    python benchmarks/data.py resume [--shards 184]
    python benchmarks/data.py overlap [--examples 10000] [--copies 4] [--source FILES]

build   gaguide beside datasets.map with the fast tokenizer on as many processes
read    one batch of blocks in shuffled order: gaguide, raw numpy memmap at random offsets with inputs and
        shifted targets, datasets (Arrow, numpy format), mosaicml-streaming
resume  time from an open interpreter to the first batch, at sample 0 and at sample 8,000,000 of a set as
        large as OpenWebText (sparse files), each in a new process
overlap the search for evaluation examples in finished shards, and a build that leaves them out, beside a
        build that does not; one process each, with its peak memory
Contenders alternate; medians and their ratios to gaguide's are printed with the load of the machine.
mosaicml-streaming is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

OPENWEBTEXT_BYTES = 38e9
VOCABULARY = 50_257
SAMPLE = 8_000_000
SHARD_BLOCKS = 48_000
_HERE = Path(__file__).resolve()


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


# build


def build(arguments: argparse.Namespace) -> None:
    from gaguide.data.build.demo_corpus import build_embedded_corpus

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = arguments.tokenizer or str(build_embedded_corpus(folder / "embedded") / "tokenizer")
        source = folder / "source.jsonl"
        size = write_source(source, arguments.source, arguments.copies)
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


# overlap


def overlap(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        from gaguide.data.build.demo_corpus import build_embedded_corpus

        tokenizer = arguments.tokenizer or str(build_embedded_corpus(folder / "embedded") / "tokenizer")
        source = folder / "source.jsonl"
        size = write_source(source, arguments.source, arguments.copies)
        write_examples(folder / "examples.json", source, arguments.examples)
        names = ("gaguide", "gaguide, decontaminated", "search of the shards")
        times: dict[str, list[float]] = {name: [] for name in names}
        memory: dict[str, list[float]] = {name: [] for name in names}
        tokens = 0
        for turn in range(arguments.repeats):
            for number, name in enumerate(names):
                options = [str(folder), tokenizer, str(turn), str(number)]
                command = [sys.executable, str(_HERE), "searched", *options]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, peak, tokens = json.loads(done.stdout.splitlines()[-1])
                times[name].append(seconds)
                memory[name].append(peak)
        title = f"build and search of {size / 1e6:.0f} MB, {tokens:,} tokens, {arguments.examples:,} examples"
        show(f"{title}, one process", times, "s", 1)
        for name in names:
            rate = tokens / statistics.median(times[name])
            print(f"{name}: {rate / 1e6:.2f} M tokens/s, peak {statistics.median(memory[name]) / 1e6:.0f} MB")


def write_examples(path: Path, source: Path, count: int) -> None:
    """Examples of 20 to 60 words: of every hundredth the text is in the source, of the others shuffled."""
    random = np.random.default_rng(0)
    with source.open(encoding="utf-8") as lines:
        documents = [json.loads(line)["text"].split() for _, line in zip(range(20_000), lines)]
    long = [words for words in documents if len(words) >= 60]
    texts = []
    for number in range(count):
        words = long[random.integers(len(long))]
        first, length = random.integers(len(words) - 59), random.integers(20, 61)
        own = words[first : first + length]
        texts.append(" ".join(own if number % 100 == 0 else random.permutation(own)))
    path.write_text(json.dumps(texts), encoding="utf-8")


def searched(arguments: argparse.Namespace) -> None:
    """In a new process: seconds and peak memory of a build (0), one with examples (1) or a search (2)."""
    import resource

    from gaguide.data import BuildRequest, build_shards, read_manifest
    from gaguide.data.overlap.decontaminate import Decontamination
    from gaguide.data.overlap.find import find_overlap
    from gaguide.data.overlap.index import EvaluationText, WordIndex

    folder, number = arguments.folder, arguments.number
    texts = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    examples = [EvaluationText("benchmark", str(at), (text,)) for at, text in enumerate(texts)]
    plain = folder / f"shards-{arguments.turn}"
    begun = time.perf_counter()
    if number < 2:
        decontamination = Decontamination(WordIndex(examples)) if number else None
        source, output = (str(folder / "source.jsonl"),), plain if number == 0 else Path(f"{plain}-clean")
        request = BuildRequest(
            source, output, arguments.tokenizer, validation_fraction=0, decontamination=decontamination
        )
        build_shards(request)
    else:
        found = find_overlap([str(plain)], examples, Path(f"{plain}-overlap")).examples
        assert all(each.seen_words for each in found[::100]), "a planted example was missed"
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([seconds, peak, read_manifest(plain).tokens]))


# resume


def resume(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        names = ["gaguide", "datasets"] + (["mosaicml-streaming"] if has_streaming() else [])
        for name in names:
            MAKE_LARGE[name](folder / name, arguments.shards)
        times: dict[str, list[float]] = {f"{name}, sample 0": [] for name in names}
        times |= {f"{name}, sample 8,000,000": [] for name in names}
        for _ in range(arguments.repeats):
            for name in names:
                for sample, label in ((0, "0"), (SAMPLE, "8,000,000")):
                    times[f"{name}, sample {label}"].append(in_new_process(name, folder / name, sample))
        times = {"gaguide": times.pop("gaguide, sample 0")} | times
        show("first batch of 32 after opening", times, "ms", 1e3)


def in_new_process(name: str, folder: Path, sample: int) -> float:
    # Verified files are remembered on a host; here every process must start without them.
    with tempfile.TemporaryDirectory() as node:
        command = [sys.executable, str(_HERE), "first", "--contender", name, "--folder", str(folder)]
        done = subprocess.run(
            [*command, "--sample", str(sample)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "GAGUIDE_NODE_CACHE": node, "PYTHONPATH": str(_HERE.parents[1])},
        )
    return float(done.stdout.split()[-1])


def first(arguments: argparse.Namespace) -> None:
    """In a new process: seconds from opening to the first batch, without imports."""
    print(FIRST_BATCH[arguments.contender](arguments.folder, arguments.sample))


def make_large_ours(folder: Path, shards: int) -> None:
    import dataclasses

    from gaguide.data.format.manifest import read_manifest
    from gaguide.data.format.shards import shard_name

    write_shards(folder, [np.zeros(SHARD_BLOCKS * 1024, np.uint16)])
    (info,) = read_manifest(folder).splits["train"]
    infos = [dataclasses.replace(info, file=shard_name("train", index)) for index in range(shards)]
    model = folder / "model.arrow"
    (folder / info.file).rename(model)
    for each in infos:
        subprocess.run(["cp", "--sparse=always", str(model), str(folder / each.file)], check=True)
    model.unlink()
    write_benchmark_manifest(folder, infos)


def first_ours(folder: Path, sample: int) -> float:
    from gaguide.data import BlockOrder, BlockStore, rank_micro_batches

    begun = time.perf_counter()
    store = BlockStore(folder, "train", 1024)
    order = BlockOrder(store.shard_blocks, 0)
    store.read(rank_micro_batches(order, sample // 32, 32, 32, 0, 1)[0])
    return time.perf_counter() - begun


def make_large_datasets(folder: Path, shards: int) -> None:
    import datasets

    features = datasets.Features({"ids": datasets.List(datasets.Value("uint16"), length=1024)})
    rows = {"ids": np.zeros((SHARD_BLOCKS, 1024), np.uint16)}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder), num_shards=1)
    (folder / "count").write_text(str(shards))


def first_datasets(folder: Path, sample: int) -> float:
    import datasets

    datasets.disable_progress_bars()
    shards = int((folder / "count").read_text())
    begun = time.perf_counter()
    (file,) = folder.glob("data-*.arrow")
    one = [datasets.Dataset.from_file(str(file)) for _ in range(shards)]
    rows = datasets.concatenate_datasets(one).with_format("numpy").shuffle(seed=0)
    rows[sample : sample + 32]["ids"].astype(np.int64)
    return time.perf_counter() - begun


def make_large_streaming(folder: Path, shards: int) -> None:
    from streaming import MDSWriter

    row = np.zeros(1024, np.uint16)
    with MDSWriter(out=str(folder), columns={"ids": "ndarray:uint16:1024"}, size_limit=2**30) as writer:
        for _ in range(SHARD_BLOCKS):
            writer.write({"ids": row})
    index = json.loads((folder / "index.json").read_text())
    (entry,) = index["shards"]
    (folder / entry["raw_data"]["basename"]).rename(folder / "model")
    index["shards"] = []
    for number in range(shards):
        name = f"shard.{number:05d}.mds"
        os.link(folder / "model", folder / name)
        index["shards"].append({**entry, "raw_data": {**entry["raw_data"], "basename": name}})
    (folder / "index.json").write_text(json.dumps(index))


def first_streaming(folder: Path, sample: int) -> float:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # the last process has left without a word
    begun = time.perf_counter()
    rows = StreamingDataset(local=str(folder), shuffle=True, batch_size=32)
    rows.load_state_dict(
        {
            "epoch": 0,
            "sample_in_epoch": sample,
            "num_canonical_nodes": 1,
            "shuffle_seed": 9176,
            "initial_physical_nodes": 1,
        }
    )
    batch = []
    for row in rows:
        batch.append(row["ids"])
        if len(batch) == 32:
            break
    np.stack(batch).astype(np.int64)
    taken = time.perf_counter() - begun
    print(taken, flush=True)
    os._exit(0)  # its threads would continue to read


MAKE_LARGE: dict[str, Callable[[Path, int], None]] = {
    "gaguide": make_large_ours,
    "datasets": make_large_datasets,
    "mosaicml-streaming": make_large_streaming,
}
FIRST_BATCH: dict[str, Callable[[Path, int], float]] = {
    "gaguide": first_ours,
    "datasets": first_datasets,
    "mosaicml-streaming": first_streaming,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "read", "resume", "first", "overlap"):
        command = commands.add_parser(name)
        command.add_argument("--repeats", type=int, default=5)
        if name == "build":
            command.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
        if name == "overlap":
            command.add_argument("--examples", type=int, default=10_000)
        if name in ("build", "overlap"):
            command.add_argument("--copies", type=int, default=4)
            command.add_argument(
                "--source", help="a Parquet file or a folder of them; default: embedded corpus"
            )
            command.add_argument("--tokenizer", help="a folder; default: the embedded corpus' own")
        if name == "read":
            command.add_argument("--length", type=int, default=1024)
            command.add_argument("--batch", type=int, default=32)
            command.add_argument("--batches", type=int, default=200)
        if name == "resume":
            command.add_argument("--shards", type=int, default=184)
        if name == "first":
            command.add_argument("--contender", choices=sorted(FIRST_BATCH), required=True)
            command.add_argument("--folder", type=Path, required=True)
            command.add_argument("--sample", type=int, required=True)
    command = commands.add_parser("searched")
    command.add_argument("folder", type=Path)
    command.add_argument("tokenizer")
    command.add_argument("turn", type=int)
    command.add_argument("number", type=int)
    arguments = parser.parse_args()
    programs: dict[str, Callable[[argparse.Namespace], None]] = {
        "build": build,
        "read": read,
        "resume": resume,
        "first": first,
        "overlap": overlap,
        "searched": searched,
    }
    programs[arguments.command](arguments)


if __name__ == "__main__":
    main()
