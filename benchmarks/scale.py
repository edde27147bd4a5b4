"""Real model sizes on a small machine: guided steps compared with bare DeepSpeed, crash, resume, export.

    python benchmarks/scale.py gpt2-large --shards DIR [--output runs/scale]
                               [--phases bare,guided,resume,evaluate,unguided]
    python benchmarks/scale.py gpt2 --shards DIR …
    python benchmarks/scale.py gpt2-xl --shards DIR …

gpt2: as gpt2-large, in a minute or two: shows that the script runs.
gpt2-large: ZeRO-2 on two ranks, a guided step, kill -9 after its checkpoint, resumed for one more.
gpt2-xl: ZeRO-3, optimizer on NVMe, one rank, checkpointing; two guided steps, kill -9, resumed for one more.
Both run in bf16 from random weights at T = 1,024, through launch/train.py with the shipped recipe
4-transition and DeepSpeed JSON (with bf16 enabled, which `auto` does not do on a CPU). The shards need
GPT-2's tokenizer.

Each phase is a separate job; they run in the order given:
  bare      DeepSpeed without gaguide: the same model built in bf16, with the same JSON, blocks and steps
  guided    the recipe 4-transition, killed after its checkpoint
  resume    the same command again, to its last step and the export
  evaluate  the exported model on a few examples
  unguided  the recipe finetuned
A phase that is named twice runs twice, and both results are kept. Records are added to results.json in the
output folder; the table shows every step, and peak memory compared with the estimate of gaguide.cost.memory.
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

from gaguide.cost.memory import MemorySetup, estimate_memory
from gaguide.log import read_metrics
from gaguide.model import SIZES, scratch_config, shape_of

ROOT = Path(__file__).parents[1]
LENGTH = 1024


@dataclass(frozen=True)
class Case:
    """How a size is run."""

    stage: str
    """Name of the DeepSpeed JSON."""
    ranks: int
    """Number of ranks."""
    steps: int
    """Steps before the crash."""
    setup: MemorySetup
    """The same setup for the memory estimate."""


def setup(ranks: int, layers: int, **others: Any) -> MemorySetup:
    """One sequence a rank, four guided heads in every layer, on a CPU."""
    return MemorySetup(
        1, ranks, block_length=LENGTH, checkpointing=True, guided_heads=4, guided_layers=layers,
        tapped=False, fused_attention=False, **others,
    )  # fmt: skip


CASES = {
    "gpt2": Case("zero2", 2, 1, setup(ranks=2, layers=12)),
    "gpt2-large": Case("zero2", 2, 1, setup(ranks=2, layers=36)),
    "gpt2-xl": Case("zero3_nvme", 1, 2, setup(ranks=1, layers=48, zero_stage=3, offload_optimizer="nvme")),
}


def launcher(case: Case) -> list[str]:
    return [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", str(case.ranks)]


def training(size: str, output: Path, shards: Path, guided: bool) -> list[str]:
    """The command line of gaguide's training."""
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
    start = [*launcher(case), str(ROOT / "launch" / "train.py")]
    given = [text for field, value in overrides.items() for text in (f"--{field}", str(value))]
    return [*start, "--deepspeed", str(ds_json), "--config", str(ROOT / "launch/recipes" / recipe), *given]


def evaluation(size: str, model: Path, output: Path) -> list[str]:
    start = [*launcher(CASES[size]), str(ROOT / "launch" / "evaluate.py")]
    given = ["--model", str(model), "--tasks", "synthetic-negation", "--limit", "4", "--dtype", "bf16"]
    return [*start, *given, "--output", str(output)]


def run(arguments: list[str], log: Path, until: Callable[[], bool] | None = None) -> float:
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
    """Run a phase in `folder`; returns its seconds and its steps or its results."""
    case, log = CASES[size], folder / f"{name}.log"
    if name == "bare":
        answer = folder / "bare.json"
        child = [str(Path(__file__)), "child", size, str(shards), str(answer)]
        seconds = run([*launcher(case), *child], log)
        return {"seconds": seconds, "steps": json.loads(answer.read_text())}
    if name == "evaluate":
        output = folder / "evaluation"
        shutil.rmtree(output, ignore_errors=True)
        seconds = run(evaluation(size, folder / "guided" / "model", output), log)
        tasks = json.loads((output / "results.json").read_text())["tasks"]
        return {"seconds": seconds, "steps": [], "tasks": {task: tasks[task]["metrics"] for task in tasks}}
    output = folder / ("unguided" if name == "unguided" else "guided")
    if name != "resume":
        shutil.rmtree(output, ignore_errors=True)
    done = output / "checkpoints" / f"step-{case.steps:08}"
    metrics = output / "metrics.jsonl"
    until: dict[str, Callable[[], bool] | None] = {
        "guided": done.exists,
        "resume": None,
        "unguided": lambda: metrics.exists() and len(read_metrics(metrics)) >= case.steps,
    }
    seconds = run(training(size, output, shards, name != "unguided"), log, until[name])
    shutil.rmtree(output / "nvme", ignore_errors=True)  # a resumed run restores it from the checkpoint
    return {"seconds": seconds, "steps": read_metrics(metrics)}


def bare(size: str, shards: Path, answer: Path) -> None:
    """One rank of the phase `bare`: DeepSpeed as in its documentation."""
    import deepspeed
    import numpy as np
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from transformers import GPT2LMHeadModel

    from gaguide.data import BlockStore
    from gaguide.model import checkpoint_activations
    from gaguide.train.device import peak_resident

    case = CASES[size]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # avoids a compile that no step needs
    settings = json.loads((ROOT / "ds_configs" / f"{case.stage}.json").read_text())
    settings |= {"bf16": {"enabled": True}, "gradient_clipping": 1.0, "train_batch_size": case.ranks}
    nvme = answer.with_name("bare-nvme")
    offload = settings["zero_optimization"].get("offload_optimizer")
    if offload:
        offload["nvme_path"] = str(nvme)
    deepspeed.init_distributed(dist_backend="gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = GPT2LMHeadModel(scratch_config(SIZES[size], 50257, 50256))
    torch.set_default_dtype(torch.float32)
    checkpoint_activations(model)
    adam = DeepSpeedCPUAdam if offload else torch.optim.AdamW
    optimizer = adam(model.parameters(), lr=5e-5, **({} if offload else {"fused": True}))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    blocks, records, seconds = BlockStore(shards, "train", LENGTH), [], 0.0
    for step in range(1, case.steps + 1):
        began = time.perf_counter()
        ids_BT = torch.from_numpy(blocks.read(np.array([(step - 1) * case.ranks + rank])).astype(np.int64))
        loss = engine(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        loss = float(loss)
        seconds += time.perf_counter() - began
        peaks: list[Any] = [None] * case.ranks
        torch.distributed.all_gather_object(peaks, peak_resident())
        record = {"step": step, "loss": loss, "lm_loss": loss, "guided_attention": None}
        records.append(record | {"seconds": seconds, "peak_memory": max(peaks)})
    if rank == 0:
        answer.write_text(json.dumps(records))
    torch.distributed.barrier()
    shutil.rmtree(nvme, ignore_errors=True)


def show(size: str, results: dict[str, list[dict[str, Any]]]) -> None:
    estimate = estimate_memory(shape_of(scratch_config(SIZES[size], 50257, 50256)), CASES[size].setup)
    table = Table("phase", "step", "loss", "lm", "attention", "seconds", "peak memory a rank", title=size)
    for name, round_, result in ((n, r, x) for n, rounds in results.items() for r, x in enumerate(rounds, 1)):
        before = 0.0
        for record in result["steps"]:
            attention = record["guided_attention"]
            table.add_row(
                f"{name} {round_}",
                str(record["step"]),
                f"{record['loss']:.4f}",
                f"{record['lm_loss']:.4f}",
                "" if attention is None else f"{attention:.4f}",
                f"{record['seconds'] - before:.1f}",
                f"{record['peak_memory'] / 1e9:.2f} GB",
            )
            before = record["seconds"]
    Console().print(table)
    for result in results.get("evaluate", []):
        Console().print(f"evaluated: {result['tasks']}")
    Console().print(
        f"estimated: {estimate.peak / 1e9:.2f} GB on the device ({estimate.peak_phase}), "
        f"{estimate.host / 1e9:.2f} GB on the host, {estimate.disk / 1e9:.1f} GB on disk; on a CPU "
        "the first two share one memory, and the interpreter's 0.5 GB are not included"
    )


def main() -> None:
    if "child" in sys.argv:  # behind DeepSpeed's --local_rank
        size, shards, answer = sys.argv[sys.argv.index("child") + 1 :]
        bare(size, Path(shards), Path(answer))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=CASES)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/scale"))
    parser.add_argument("--phases", default="bare,guided,resume,evaluate,unguided")
    arguments = parser.parse_args()
    folder = (arguments.output / arguments.size).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "results.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    for name in arguments.phases.split(","):
        results.setdefault(name, []).append(phase(name, arguments.size, folder, arguments.shards.resolve()))
        record.write_text(json.dumps(results, indent=1))
    show(arguments.size, results)


if __name__ == "__main__":
    main()
