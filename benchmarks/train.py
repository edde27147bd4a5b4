"""Training speed compared with the Hugging Face Trainer and a plain loop, alternating step by step.

    python benchmarks/train.py --shards DIR [--steps 12] [--length 512] [--micro-batch 1] [--json zero2]
                               [--ranks 2] [--groups alone,ranks] [--no-memory] [--output FILE]

Contenders, all of gpt2's shape with random weights, no dropout, the same blocks and rate, clipping at 1:
  plain         nanoGPT's loop on one process: memory-mapped tokens, fused AdamW and GELU, and on a GPU a
                padded vocabulary
  ours-alone    gaguide's step (records included) on one process under ZeRO-0
  guided-alone  the same with experiment 4-transition
  trainer       transformers' Trainer with --json on --ranks (two by default, one where there is one GPU)
  ours, guided  gaguide with --json on --ranks
The global batch is two micro batches for all of them (accumulated on one rank). All cores are used: two
threads for one process, one for each of two ranks. The contenders of a group, the first three and the last
three, run in the same processes and take turns step by step, so that changes of the machine's speed affect
them equally; the first two turns are not counted. Peak memory is that of two steps in processes without the
others: the largest rank's resident set (CPU) or allocation (GPU).
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
WARMUP = 2
RATE = 1e-4
GROUPS = {"alone": ("plain", "ours-alone", "guided-alone"), "ranks": ("trainer", "ours", "guided")}


def alone(contender: str) -> bool:
    return contender == "plain" or contender.endswith("-alone")


def launch(names: Sequence[str], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a child process, or its ranks, to the end; returns rank 0's JSON."""
    ranks, cores = 1 if alone(names[0]) else settings["ranks"], os.cpu_count() or 1
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


def overrides(settings: dict[str, Any], guided: bool, output: str) -> dict[str, str]:
    steps = settings["steps"] + WARMUP
    return {
        "output": output,
        "model.name": "gpt2",
        "model.init": "scratch",
        "model.dropout": "0",
        "data.shards": settings["shards"],
        "data.block_length": str(settings["length"]),
        "guidance.experiment": "4-transition" if guided else "finetuned",
        "train.global_batch": str(2 * settings["micro_batch"]),
        "train.micro_batch": str(settings["micro_batch"]),
        "train.steps": str(steps + 1),  # the last step is followed by saving: it is not run
        "train.learning_rate": str(RATE),
        "train.schedule": "constant",
        "train.warmup_steps": "0",
        "train.weight_decay": "0.01",
        "train.log_every": "1",
        "validation.blocks": "1",
        "validation.every": "0",
        "checkpoint.every": "0",
    }


def make_job(settings: dict[str, Any], guided: bool, stage: str, folder: str) -> tuple[Any, Any]:
    from gaguide.config import EMBEDDED, load_config
    from gaguide.distributed import World, broadcast, start
    from gaguide.train.preflight import prepare

    world = World.from_environment()
    start(world)
    run = load_config(EMBEDDED, overrides(settings, guided, broadcast(folder)))
    return prepare(run, ROOT / "ds_configs" / f"{stage}.json", world), world


def ours(settings: dict[str, Any], guided: bool, stage: str) -> Iterator[None]:
    """gaguide's Trainer; each item is a step."""
    from gaguide.engine.build import build_engine
    from gaguide.liveness.heartbeat import HeartbeatFolder
    from gaguide.liveness.preemption import Preemption
    from gaguide.liveness.watchdog import Watchdog
    from gaguide.model import build_model
    from gaguide.train.run import guided as attached
    from gaguide.train.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        job, world = make_job(settings, guided, stage, folder)
        model = build_model(job.model, job.run.seed)
        engine = build_engine(model, job.deepspeed, job.run.train, world, job.frozen)
        preemption = Preemption(world)
        watchdog = Watchdog(
            job.output,
            HeartbeatFolder(job.output / ".heartbeats"),
            world,
            job.run.train.hang_timeout,
            preemption.request_stop,
        )
        with watchdog, preemption, attached(engine.module, job) as guidance:
            trainer = Trainer(job, world, engine, guidance, preemption, watchdog)
            trainer.resume()
            for step in range(1, job.total_steps):
                trainer.step(step)
                yield


def plain(settings: dict[str, Any]) -> Iterator[None]:
    """nanoGPT's loop; each item is a step: random windows of memory-mapped tokens, accumulation, clipping."""
    from gaguide.model import adapt_to, build_model

    with tempfile.TemporaryDirectory() as folder:
        job, _ = make_job(settings, False, "zero0", folder)
        blocks, model = job.corpus.blocks, build_model(job.model, 0)
        T, B = settings["length"], settings["micro_batch"]
        tokens = Path(folder) / "train.bin"
        blocks.read(np.arange(min(len(blocks), 256))).astype(np.uint16).ravel().tofile(tokens)
        data = np.memmap(tokens, dtype=np.uint16, mode="r")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device)
        adapt_to(model, device, job.deepspeed.precision)
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        generator = torch.Generator().manual_seed(0)
        while True:
            for _ in range(2):
                at = torch.randint(len(data) - T, (B,), generator=generator)
                ids_BT = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in at])
                ids_BT = ids_BT.to(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss / 2
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
            yield


def trainer(settings: dict[str, Any], turn: Callable[[], None]) -> None:
    """transformers' Trainer with the same JSON, model, blocks and logging of every step.

    `turn` is called between two steps, before the first and after the last.
    """
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turn()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            turn()

    with tempfile.TemporaryDirectory() as folder:
        job, _ = make_job(settings, False, settings["json"], folder)
        ds_json = dict(job.deepspeed.settings)
        sequences = 2 * settings["micro_batch"] * (settings["steps"] + WARMUP)
        ids = torch.from_numpy(job.corpus.blocks.read(np.arange(sequences) % len(job.corpus.blocks)))
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=settings["micro_batch"],
            gradient_accumulation_steps=2 // settings["ranks"],
            max_steps=settings["steps"] + WARMUP,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            deepspeed=ds_json,
            bf16=job.deepspeed.precision == "bf16",
            fp16=job.deepspeed.precision == "fp16",
            use_cpu=not torch.cuda.is_available(),
        )
        rows = [{"input_ids": row, "labels": row} for row in ids]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(job.model.config, attn_implementation="sdpa")
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Turns()]).train()


def in_turns(names: Sequence[str], settings: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of every counted step of these contenders, which take turns in this process."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    works = {name: work(name, settings) for name in names if name != "trainer"}

    def turn() -> None:
        for name, steps in works.items():
            began = time.perf_counter()
            next(steps)
            seconds[name].append(time.perf_counter() - began)

    if "trainer" in names:
        resumed = 0.0

        def between() -> None:
            nonlocal resumed
            if resumed:
                seconds["trainer"].append(time.perf_counter() - resumed)
            if len(seconds["trainer"]) < settings["steps"] + WARMUP:
                turn()
            resumed = time.perf_counter()

        trainer(settings, between)
    else:
        for _ in range(settings["steps"] + WARMUP):
            turn()
    return {name: taken[WARMUP:] for name, taken in seconds.items()}


def work(name: str, settings: dict[str, Any]) -> Iterator[None]:
    if name == "plain":
        return plain(settings)
    return ours(settings, name.startswith("guided"), "zero0" if alone(name) else settings["json"])


def child(names: str, settings_json: str, answer: str, *_: str) -> None:
    from gaguide.distributed import World, stop
    from gaguide.train.device import peak_memory

    seconds = in_turns(names.split(","), json.loads(settings_json))
    world = World.from_environment()
    memory = peak_memory(world.device)
    if world.is_main:
        Path(answer).write_text(json.dumps({"seconds": seconds, "memory": memory}))
    stop()


def show(seconds: dict[str, list[float]], memory: dict[str, int], settings: dict[str, Any]) -> None:
    tokens = 2 * settings["micro_batch"] * settings["length"]
    table = Table(
        "contender", "ranks", "median step", "tokens/s", "against", "median of turns' ratios", "peak memory"
    )
    for name, taken in seconds.items():
        peer = "plain" if alone(name) else "trainer"
        ratio = ""
        if peer in seconds and peer != name:
            ratio = f"{statistics.median(theirs / mine for mine, theirs in zip(taken, seconds[peer])):.3f}"
        median = statistics.median(taken)
        table.add_row(
            name,
            "1" if alone(name) else str(settings["ranks"]),
            f"{median:.4f} s",
            f"{tokens / median:,.0f}",
            peer,
            ratio,
            f"{memory[name] / 2**20:,.0f} MiB" if name in memory else "",
        )
    Console(width=110).print(table)


def main() -> None:
    if sys.argv[1:2] == ["child"] or "child" in sys.argv[1:3]:
        child(*sys.argv[sys.argv.index("child") + 1 :])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=1)
    jsons = sorted(path.stem for path in (ROOT / "ds_configs").glob("zero[123]*.json"))
    parser.add_argument(
        "--json", default="zero2", choices=jsons, help="where not alone (autocast is unknown to the Trainer)"
    )
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=min(2, torch.cuda.device_count() or 2))
    parser.add_argument("--groups", default="alone,ranks")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, help="write all times to this JSON file")
    arguments = parser.parse_args()
    keys = ("shards", "steps", "length", "micro_batch", "json", "ranks")
    settings = {key: getattr(arguments, key) for key in keys}
    seconds: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group in arguments.groups.split(","):
            seconds |= launch(GROUPS[group], settings, Path(folder))["seconds"]
            for name in GROUPS[group] if arguments.memory else ():
                memory[name] = launch([name], settings | {"steps": 0}, Path(folder))["memory"]
            if arguments.output:
                arguments.output.write_text(json.dumps({"seconds": seconds, "memory": memory}, indent=1))
    show(seconds, memory, settings)


if __name__ == "__main__":
    main()
