"""The steps that `train.py` compares: gaguide's, nanoGPT's and those of transformers' Trainer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nanogpt
import numpy as np
import torch
from nanogpt import Shape

ROOT = Path(__file__).parents[1]
WARMUP = 3
RATE = 1e-4
LEXICONS = ("order", "contrast", "addition", "emphasis")
COMPILED = "-compiled"


def guided_heads(contender: str) -> int | None:
    """Guided heads of every layer; None without guidance."""
    base = contender.removesuffix(COMPILED)
    if not base.startswith("guided"):
        return None
    return int(base.partition("-")[2] or 4)


def overrides(settings: dict[str, Any], name: str, output: str) -> dict[str, str]:
    steps, heads = settings["steps"] + WARMUP, guided_heads(name)
    plan = [{"pattern": LEXICONS[head % 4], "heads": head} for head in range(heads or 0)]
    guidance = {"guidance.plan": json.dumps(plan)} if plan else {}
    guidance |= {"guidance.method": "tap"} if "launch" in settings else {}
    return guidance | {
        "output": output,
        "model.name": settings["model"],
        "model.init": "scratch",
        "model.dropout": "0",
        "data.shards": settings["shards"],
        "data.block_length": str(settings["length"]),
        "guidance.experiment": "finetuned",
        "train.compile": str(name.endswith(COMPILED)).lower(),
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


def make_job(settings: dict[str, Any], name: str, stage: str, folder: str) -> tuple[Any, Any]:
    from gaguide.config import EMBEDDED, load_config
    from gaguide.distributed import World, broadcast, start
    from gaguide.train.preflight import prepare

    world = World.from_environment()
    start(world)
    run = load_config(EMBEDDED, overrides(settings, name, broadcast(folder)))
    return prepare(run, ROOT / "ds_configs" / f"{stage}.json", world), world


def ours(settings: dict[str, Any], name: str, stage: str) -> Iterator[None]:
    """gaguide's Trainer; each item is a step."""
    from gaguide.engine.build import build_engine
    from gaguide.liveness.heartbeat import HeartbeatFolder
    from gaguide.liveness.preemption import Preemption
    from gaguide.liveness.watchdog import Watchdog
    from gaguide.model import build_model
    from gaguide.train.run import attach_guidance as attached
    from gaguide.train.step_inputs import StepInputs
    from gaguide.train.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        job, world = make_job(settings, name, stage, folder)
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
            trainer = Trainer(StepInputs(job, world, engine, guidance, preemption, watchdog))
            trainer.resume()
            for step in range(1, job.total_steps):
                trainer.step(step)
                yield


def nano(settings: dict[str, Any], compiled: bool) -> Iterator[None]:
    """nanoGPT's loop on random windows of memory-mapped tokens; each item is a step."""
    with tempfile.TemporaryDirectory() as folder:
        job, _ = make_job(settings, "nano", "zero0", folder)
        blocks = job.corpus.blocks
        T, B = settings["length"], settings["micro_batch"]
        tokens = Path(folder) / "train.bin"
        blocks.read(np.arange(min(len(blocks), 256))).astype(np.uint16).ravel().tofile(tokens)
        data = np.memmap(tokens, dtype=np.uint16, mode="r")
        generator = torch.Generator().manual_seed(0)

        def batches() -> Iterator[torch.Tensor]:
            while True:
                at = torch.randint(len(data) - T, (B,), generator=generator)
                yield torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in at])

        device = "cuda" if torch.cuda.is_available() else "cpu"
        yield from nanogpt.steps(Shape.of(job.model.config), batches(), RATE, 2, compiled, device)


def trainer(settings: dict[str, Any], turn: Callable[[], None], compiled: bool) -> None:
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
        job, _ = make_job(settings, "trainer", settings["json"], folder)
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
            torch_compile=compiled,
            deepspeed=ds_json,
            bf16=job.deepspeed.precision == "bf16",
            fp16=job.deepspeed.precision == "fp16",
            use_cpu=not torch.cuda.is_available(),
        )
        rows = [{"input_ids": row, "labels": row} for row in ids]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(job.model.config, attn_implementation="sdpa")
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Turns()]).train()
