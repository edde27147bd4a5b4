"""Real sizes on a small machine: guided and unguided steps, a crash after a checkpoint, resume, export.

    python benchmarks/scale.py gpt2-large --shards DIR [--output runs/scale] [--phases guided,resume,unguided]
    python benchmarks/scale.py gpt2-xl --shards DIR …

gpt2-large: ZeRO-2 on two ranks, a guided step, kill -9 after its checkpoint, resumed for one more.
gpt2-xl: ZeRO-3, optimizer on disk, one rank, checkpointing; two guided steps, kill -9, resumed for one more.
Both in bf16 from random weights at T = 1,024, through launch/train.py with the shipped recipe 4-transition
and DeepSpeed JSON (with bf16 on, which `auto` is not on a CPU). The shards need GPT-2's tokenizer. Each phase
adds its records to results.json in the output folder; the table shows guided beside unguided, and the peak
beside the arithmetic of gaguide.model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gaguide.log import read_metrics
from gaguide.model import SIZES, MemorySetup, estimate_memory, scratch_config, shape_of

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """How a size is run: JSON, ranks, steps before the crash."""

    stage: str
    ranks: int
    steps: int
    setup: MemorySetup


CASES = {
    "gpt2-large": Case(
        "zero2", 2, 1, MemorySetup(1, 1024, 2, 2, checkpointing=True, guided_heads=4, guided_layers=36)
    ),
    "gpt2-xl": Case(
        "zero3_nvme",
        1,
        2,
        MemorySetup(
            1, 1024, 3, checkpointing=True, guided_heads=4, guided_layers=48, offload_optimizer="nvme"
        ),
    ),
}


def command(size: str, output: Path, shards: Path, guided: bool) -> list[str]:
    case = CASES[size]
    settings = json.loads((ROOT / "ds_configs" / f"{case.stage}.json").read_text())
    settings["bf16"] = {"enabled": True}
    ds_json = output.parent / f"{case.stage}-bf16.json"
    ds_json.write_text(json.dumps(settings))
    recipe = f"{size}-{'4-transition' if guided else 'finetuned'}.yaml"
    overrides = {
        "output": output,
        "model.init": "scratch",
        "data.shards": shards,
        "train.epochs": "null",
        "train.steps": case.steps + 1,
        "train.global_batch": case.ranks,
        "train.micro_batch": 1,
        "train.warmup_steps": 0,
        "train.log_every": 1,
        "validation.blocks": case.ranks,
        "validation.every": 0,
        "checkpoint.every": case.steps if guided else 0,
        "checkpoint.keep": 1,
    }
    launcher = Path(sys.executable).parent / "deepspeed"
    start = [str(launcher), "--num_accelerators", str(case.ranks), str(ROOT / "launch" / "train.py")]
    given = [text for field, value in overrides.items() for text in (f"--{field}", str(value))]
    return [*start, "--deepspeed", str(ds_json), "--config", str(ROOT / "launch/recipes" / recipe), *given]


def run(arguments: list[str], log: Path, until: Callable[[], bool] | None) -> float:
    """Run to the end, or kill -9 all ranks when `until` holds; returns seconds."""
    began = time.monotonic()
    with log.open("w") as file:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        job = subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        while job.poll() is None:
            if until is not None and until():
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
                return time.monotonic() - began
            time.sleep(0.2)
    if until is not None or job.returncode:
        raise SystemExit(f"ended with code {job.returncode}: see {log}")
    return time.monotonic() - began


def phase(name: str, size: str, folder: Path, shards: Path) -> dict[str, Any]:
    case, guided = CASES[size], name != "unguided"
    output = folder / ("guided" if guided else "unguided")
    done = output / "checkpoints" / f"step-{case.steps:08}"
    metrics = output / "metrics.jsonl"
    until: dict[str, Callable[[], bool] | None] = {
        "guided": done.exists,
        "resume": None,
        "unguided": lambda: metrics.exists() and len(read_metrics(metrics)) >= case.steps,
    }
    seconds = run(command(size, output, shards, guided), folder / f"{name}.log", until[name])
    shutil.rmtree(output / "nvme", ignore_errors=True)  # a resumed run fills it from the checkpoint
    return {"seconds": seconds, "steps": read_metrics(metrics)}


def show(size: str, results: dict[str, Any]) -> None:
    estimate = estimate_memory(shape_of(scratch_config(SIZES[size], 50257, 50256)), CASES[size].setup)
    table = Table("phase", "step", "loss", "lm", "attention", "seconds", "peak memory a rank", title=size)
    for name, result in results.items():
        before = 0.0
        for record in result["steps"]:
            attention = record["guided_attention"]
            table.add_row(
                name,
                str(record["step"]),
                f"{record['loss']:.4f}",
                f"{record['lm_loss']:.4f}",
                "" if attention is None else f"{attention:.4f}",
                f"{record['seconds'] - before:.1f}",
                f"{record['peak_memory'] / 1e9:.2f} GB",
            )
            before = record["seconds"]
    Console().print(table)
    Console().print(
        f"by arithmetic: {estimate.peak / 1e9:.2f} GB on the device ({estimate.peak_phase}), "
        f"{estimate.host / 1e9:.2f} GB for the host's part, {estimate.disk / 1e9:.1f} GB on disk; on a CPU "
        "the first two are one memory, and the interpreter's own 0.5 GB is not counted"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=CASES)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/scale"))
    parser.add_argument("--phases", default="guided,resume,unguided")
    arguments = parser.parse_args()
    folder = (arguments.output / arguments.size).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "results.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    for name in arguments.phases.split(","):
        results[name] = phase(name, arguments.size, folder, arguments.shards.resolve())
        record.write_text(json.dumps(results, indent=1))
    show(arguments.size, results)


if __name__ == "__main__":
    main()
