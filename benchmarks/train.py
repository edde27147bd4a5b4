"""Training speed compared with nanoGPT and the Hugging Face Trainer, eager and compiled, in turns.

    python benchmarks/train.py --shards DIR [--steps 12] [--length 512] [--micro-batch 1] [--json zero2]
                               [--ranks 2] [--groups eager,compiled,trainer,trainer-compiled] [--no-memory]
                               [--output FILE]
    python benchmarks/train.py host --shards DIR [--steps 30] [--launch 28]

Contenders, all of gpt2's shape with random weights, no dropout, the same blocks and rate, clipping at 1:
  nano           nanoGPT's model and loop on one process (nanogpt.py)
  ours-alone     gaguide's step (records included) on one process under ZeRO-0
  guided-N       the same with N of the 12 heads of every layer guided
  trainer        transformers' Trainer with --json on --ranks (two by default, one where there is one GPU)
  ours, guided   gaguide with --json on --ranks; guided with 4 heads of every layer
A name that ends in -compiled runs under torch.compile: nanoGPT's `torch.compile(model)`, the Trainer's
`torch_compile`, `train.compile: true`. The global batch is two micro batches for all of them (accumulated
on one rank). All cores are used: two threads for one process, one for each of two ranks. The contenders of
a group run in the same processes and take turns step by step, so that changes of the machine's speed affect
them equally; the first three turns, in which graphs are compiled, are not counted. Beside wall-clock time
stands the processor time of rank 0, which other programs on the machine lengthen less. Peak memory is that
of two steps in processes without the others: the largest rank's resident set (CPU) or allocation (GPU).

`host` runs the contenders of one process, and ours under ZeRO 0, 1 and 2, on tensors so small that nearly
all time is the host's: Python, dispatch and launches, one thread. Its ratios say what a GPU waits for where
the host is the limit. Without a GPU the guided ones do there what they do on one (`guidance.method: tap`),
with Triton kernels that return zeros and take --launch microseconds, as in guidance.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from guidance import emulated_launches
from train_contenders import COMPILED, ROOT, WARMUP, guided_heads, nano, ours, trainer

Seconds = tuple[float, float]
"""Wall-clock and processor time of a step."""
ALONE = ("nano", "ours-alone", "guided-4", "guided-12")
RANKS = ("trainer", "ours", "guided")
HOST = (
    "nano", "ours-alone", "ours-zero1", "ours-zero2", "guided-4", "guided-12",
    "nano-compiled", "ours-alone-compiled", "guided-4-compiled", "guided-12-compiled",
)  # fmt: skip
GROUPS = {
    "eager": ALONE,
    "compiled": tuple(name + COMPILED for name in ALONE),
    "trainer": RANKS,
    "trainer-compiled": tuple(name + COMPILED for name in RANKS),
    "host": HOST,
}


def alone(contender: str) -> bool:
    return contender.removesuffix(COMPILED) in HOST + ALONE


def peer(contender: str) -> str:
    """The contender that this one is compared with; empty for a peer itself."""
    base, suffix = contender.removesuffix(COMPILED), COMPILED if contender.endswith(COMPILED) else ""
    if base in ("nano", "trainer"):
        return ""
    return ("nano" if alone(contender) else "trainer") + suffix


def unguided(contender: str) -> str:
    """The unguided twin of a guided contender; empty for others."""
    if guided_heads(contender) is None:
        return ""
    suffix = COMPILED if contender.endswith(COMPILED) else ""
    return ("ours-alone" if alone(contender) else "ours") + suffix


def launch(names: Sequence[str], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a child process, or its ranks, to the end; returns rank 0's JSON."""
    ranks, cores = 1 if alone(names[0]) else settings["ranks"], settings["threads"]
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    child = [str(Path(__file__)), "child", ",".join(names), json.dumps(settings), str(answer)]
    launcher = str(Path(sys.executable).parent / "deepspeed")
    command = [sys.executable, *child]
    if not alone(names[0]):
        command = [launcher, "--num_accelerators", str(ranks), "--master_port", "29777", *child]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{', '.join(names)} ended with code {done.returncode}\n{done.stdout[-3000:]}")
    return dict(json.loads(answer.read_text()))


def in_turns(names: Sequence[str], settings: dict[str, Any]) -> dict[str, list[Seconds]]:
    """Wall-clock and processor seconds of every counted step of these contenders, which take turns here."""
    taken: dict[str, list[Seconds]] = {name: [] for name in names}
    driver = next((name for name in names if name.startswith("trainer")), None)
    works = {name: work(name, settings) for name in names if name != driver}

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def note(name: str, began: tuple[float, float]) -> None:
        taken[name].append(tuple(after - before for after, before in zip(now(), began)))  # type: ignore[arg-type]

    def turn() -> None:
        for name, steps in works.items():
            began = now()
            next(steps)
            note(name, began)

    if driver is not None:
        resumed: tuple[float, float] | None = None

        def between() -> None:
            nonlocal resumed
            if resumed is not None:
                note(driver, resumed)
            if len(taken[driver]) < settings["steps"] + WARMUP:
                turn()
            resumed = now()

        trainer(settings, between, driver.endswith(COMPILED))
    else:
        for _ in range(settings["steps"] + WARMUP):
            turn()
    return {name: each[WARMUP:] for name, each in taken.items()}


def work(name: str, settings: dict[str, Any]) -> Iterator[None]:
    base = name.removesuffix(COMPILED)
    if base == "nano":
        return nano(settings, name.endswith(COMPILED))
    stage = base.removeprefix("ours-") if base.startswith("ours-zero") else "zero0"
    return ours(settings, name, stage if alone(name) else settings["json"])


def child(names: str, settings_json: str, answer: str, *_: str) -> None:
    from gaguide.distributed import World, all_gather, stop
    from gaguide.train.device import held_memory

    settings = json.loads(settings_json)
    with emulated_launches(settings["launch"] * 1e-6) if "launch" in settings else nullcontext():
        seconds = in_turns(names.split(","), settings)
    world = World.from_environment()
    memory = max(all_gather(held_memory(world.device)))
    if world.is_main:
        Path(answer).write_text(json.dumps({"seconds": seconds, "memory": memory}))
    stop()


def show(seconds: dict[str, list[Seconds]], memory: dict[str, int], settings: dict[str, Any]) -> None:
    """Print a table in Markdown; ratios are medians of the turns' own, of wall-clock / processor time."""
    tokens = 2 * settings["micro_batch"] * settings["length"]
    print(
        "| contender | ranks | median step | processor | tokens/s | peer / it | it / unguided | peak memory |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, taken in seconds.items():
        wall, processor = (statistics.median(each[at] for each in taken) for at in (0, 1))
        size = f"{memory[name] / 2**20:,.0f} MiB" if name in memory else ""
        faster = ratios(seconds.get(peer(name)), taken)
        guidance = ratios(taken, seconds.get(unguided(name)))
        print(
            f"| {name} | {1 if alone(name) else settings['ranks']} | {1000 * wall:,.1f} ms | "
            f"{1000 * processor:,.1f} ms | {tokens / wall:,.0f} | {faster} | {guidance} | {size} |"
        )


def ratios(some: list[Seconds] | None, others: list[Seconds] | None) -> str:
    """Medians of the turns' ratios of wall-clock / processor time; empty without one of them."""
    if some is None or others is None:
        return ""
    medians = (statistics.median(a[at] / b[at] for a, b in zip(some, others)) for at in (0, 1))
    return " / ".join(f"{median:.3f}" for median in medians)


def tiny_model(folder: str) -> str:
    """A folder with the configuration of gpt2's layers and heads, one number wide."""
    from transformers import GPT2Config

    GPT2Config(
        n_layer=12, n_head=12, n_embd=24, vocab_size=2048, n_positions=16, bos_token_id=0, eos_token_id=0
    ).save_pretrained(folder)
    return folder


def main() -> None:
    if sys.argv[1:2] == ["child"] or "child" in sys.argv[1:3]:
        child(*sys.argv[sys.argv.index("child") + 1 :])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="time", choices=("time", "host"))
    parser.add_argument("--shards", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=1)
    jsons = sorted(path.stem for path in (ROOT / "ds_configs").glob("zero[123]*.json"))
    parser.add_argument(
        "--json", default="zero2", choices=jsons, help="where not alone (autocast is unknown to the Trainer)"
    )
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=min(2, torch.cuda.device_count() or 2))
    parser.add_argument("--groups", default="eager,compiled,trainer,trainer-compiled")
    parser.add_argument("--contenders", help="of the groups, only these")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--launch", type=float, default=28.0)
    parser.add_argument("--output", type=Path, help="write all times to this JSON file")
    arguments = parser.parse_args()
    keys = ("shards", "steps", "length", "micro_batch", "json", "ranks")
    settings = {key: getattr(arguments, key) for key in keys}
    settings |= {"model": "gpt2", "threads": os.cpu_count() or 1}
    groups = arguments.groups.split(",")
    chosen = arguments.contenders.split(",") if arguments.contenders else None
    seconds: dict[str, list[Seconds]] = {}
    memory: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "host":
            groups, arguments.memory = ["host"], False
            settings |= {"model": tiny_model(folder), "threads": 1, "length": 8, "micro_batch": 1}
            settings |= {} if torch.cuda.is_available() else {"launch": arguments.launch}
        for group in groups:
            names = [name for name in GROUPS[group] if chosen is None or name in chosen]
            seconds |= launch(names, settings, Path(folder))["seconds"]
            for name in names if arguments.memory else ():
                memory[name] = launch([name], settings | {"steps": 0}, Path(folder))["memory"]
            if arguments.output:
                arguments.output.write_text(json.dumps({"seconds": seconds, "memory": memory}, indent=1))
    show(seconds, memory, settings)


if __name__ == "__main__":
    main()
