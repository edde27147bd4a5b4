"""Time from an open interpreter to the first batch, compared with datasets and mosaicml-streaming.

    python benchmarks/data_resume.py [--shards 184]

At sample 0 and at sample 8,000,000 of a set as large as OpenWebText (sparse files), each in a new process.
Contenders alternate; medians and their ratios to gaguide's are printed with the load of the machine.
mosaicml-streaming is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from data import has_streaming, show, write_benchmark_manifest, write_shards

SAMPLE = 8_000_000
SHARD_BLOCKS = 48_000
_HERE = Path(__file__).resolve()


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
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shards", type=int, default=184)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("first", help="one contender; for this script")
    command.add_argument("--contender", choices=sorted(FIRST_BATCH), required=True)
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("--sample", type=int, required=True)
    arguments = parser.parse_args()
    (first if arguments.command else resume)(arguments)


if __name__ == "__main__":
    main()
