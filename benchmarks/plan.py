"""What `gaguide plan` predicts beside what is measured: memory of a rank and bytes on the wire.

    python benchmarks/plan.py [--only zero2-bf16,…] [--output FILE.json]

Every case starts real ranks under `deepspeed` (gloo, CPU): gaguide's engine on a GPT-2, three steps.
Memory is the process's own high-water mark (VmHWM, set back before each phase of the last step) less its
resident set after the imports, after a tiny model has trained in the same process (so that libraries have
made what they keep) and after the process group has met. glibc returns every block above 64 KiB to the
kernel at once (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_), so that freed tensors do not count.
Bytes on the wire are those of DeepSpeed's comms logger over the last step, by operation.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

BASE = {"stage": 0, "ranks": 1, "precision": "fp32", "size": "gpt2", "batch": 2, "length": 512}
CASES: dict[str, dict[str, Any]] = {
    "zero0-fp32-1": {},
    "zero1-fp32-1": {"stage": 1},
    "zero2-fp32-1": {"stage": 2},
    "zero3-fp32-1": {"stage": 3},
    "zero2-bf16-1": {"stage": 2, "precision": "bf16"},
    "zero2-bf16-1-accumulation": {"stage": 2, "precision": "bf16", "accumulation": 2},
    "zero2-bf16-1-checkpointing": {"stage": 2, "precision": "bf16", "checkpointing": True, "batch": 4},
    "zero2-bf16-1-guided": {"stage": 2, "precision": "bf16", "guided": 4, "batch": 4},
    "zero3-bf16-1": {"stage": 3, "precision": "bf16"},
    "zero0-fp32-2": {"ranks": 2, "batch": 1},
    "zero1-fp32-2": {"ranks": 2, "stage": 1},
    "zero2-fp32-2": {"ranks": 2, "stage": 2},
    "zero3-fp32-2": {"ranks": 2, "stage": 3},
    "zero1-bf16-2": {"ranks": 2, "stage": 1, "precision": "bf16"},
    "zero2-bf16-2": {"ranks": 2, "stage": 2, "precision": "bf16"},
    "zero3-bf16-2": {"ranks": 2, "stage": 3, "precision": "bf16"},
    "zero2-bf16-2-accumulation": {"ranks": 2, "stage": 2, "precision": "bf16", "accumulation": 2},
    "zero3-bf16-2-accumulation": {"ranks": 2, "stage": 3, "precision": "bf16", "accumulation": 2},
    "zero3-bf16-2-checkpointing": {"ranks": 2, "stage": 3, "precision": "bf16", "checkpointing": True},
}


def case_of(name: str) -> dict[str, Any]:
    plain = {"accumulation": 1, "checkpointing": False, "guided": 0}
    return BASE | plain | CASES[name]


# --- a rank -------------------------------------------------------------------------------------------------


def resident(field: str = "VmRSS") -> int:
    """Bytes that this process holds now (VmRSS) or held at most (VmHWM)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def forget_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


class Phases:
    """Peak bytes above the baseline, by phase of a step."""

    def __init__(self, baseline: int) -> None:
        self.baseline, self.peaks = baseline, {}
        forget_peak()

    def end(self, phase: str) -> None:
        peak = resident("VmHWM") - self.baseline
        self.peaks[phase] = max(peak, self.peaks.get(phase, 0))
        forget_peak()


def child(case: dict[str, Any], folder: Path) -> None:
    import deepspeed.comm.comm as comm
    import torch
    from transformers import GPT2LMHeadModel

    from gaguide.dist import World, start, stop
    from gaguide.model import SIZES, scratch_config
    from gaguide.train.engine import make_engine

    world = World.from_environment()
    start(world)
    warm_up(case)
    gc.collect()
    baseline = resident()
    config = scratch_config(SIZES[case["size"]], 50_257, None)
    config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.0
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).train()
    model.loss_type, model.config.use_cache = "ForCausalLM", False
    engine = make_engine(job_of(case, world.size), model, world)
    after_init = resident() - baseline
    with ExitStack() as stack:
        guidance = stack.enter_context(guide_of(engine.module, case)) if case["guided"] else None
        for step in range(3):
            comm.comms_logger.reset_data()
            phases = Phases(baseline)
            for micro in range(case["accumulation"]):
                torch.manual_seed(1000 * step + 10 * micro + world.rank)
                ids_BT = torch.randint(0, 50_257, (case["batch"], case["length"]))
                loss = engine(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
                if guidance is not None:
                    loss = loss + guidance.loss()
                phases.end("forward")
                engine.backward(loss)
                phases.end("backward")
                engine.step()
                phases.end("update")
    wire = {
        name: [[size, numbers[0]] for size, numbers in by_size.items()]
        for name, by_size in comm.comms_logger.get_raw_data().items()
    }
    record = {"after_init": after_init, "baseline": baseline, "phases": phases.peaks, "wire": wire}
    (folder / f"{world.rank}.json").write_text(json.dumps(record), "utf-8")
    stop()


def warm_up(case: dict[str, Any]) -> None:
    """Train a tiny model once: what oneDNN, autograd's threads and torch make once stays out of the peak."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    dtype = torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    config = GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=512, n_positions=64, attn_pdrop=0)
    model = GPT2LMHeadModel(config).to(dtype).train()
    ids_BT = torch.randint(0, 512, (2, 64))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
    optimizer.step()


def deepspeed_json(case: dict[str, Any]) -> dict[str, Any]:
    config = json.loads((REPOSITORY / "ds_configs" / f"zero{case['stage']}.json").read_text("utf-8"))
    config["bf16"] = {"enabled": case["precision"] == "bf16"}
    config["comms_logger"] = {"enabled": True, "prof_all": True, "verbose": False, "debug": False}
    return config


def job_of(case: dict[str, Any], ranks: int) -> Any:
    """What `make_engine` reads of a job."""
    from gaguide.config import plan_batch
    from gaguide.config.deepspeed import Precisions, RunSide, resolve_deepspeed
    from gaguide.config.run import TrainSection

    batch = plan_batch(case["batch"] * case["accumulation"] * ranks, case["batch"], ranks)
    train = TrainSection(
        global_batch=batch.global_batch, steps=1, gradient_checkpointing=case["checkpointing"]
    )
    resolved = resolve_deepspeed(
        deepspeed_json(case), batch, RunSide(1.0, Path()), Precisions(True, True, False)
    )
    return SimpleNamespace(run=SimpleNamespace(train=train), deepspeed=resolved, frozen=())


def guide_of(model: Any, case: dict[str, Any]) -> Any:
    from gaguide.guidance import Assignment, GuidancePlan, TokenSet, guide

    pattern = TokenSet("words", frozenset(range(100, 600)))
    return guide(model, GuidancePlan((Assignment(pattern, tuple(range(case["guided"]))),)))


# --- the parent ---------------------------------------------------------------------------------------------


def measure(case: dict[str, Any]) -> list[dict[str, Any]]:
    """One record a rank."""
    starter = [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", str(case["ranks"])]
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [*starter, "--master_port", "29611", __file__, "child", json.dumps(case), folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return [
            json.loads((Path(folder) / f"{rank}.json").read_text("utf-8")) for rank in range(case["ranks"])
        ]


def main() -> None:
    if sys.argv[1:2] == ["child"] or sys.argv[2:3] == ["child"]:
        at = sys.argv.index("child")
        child(json.loads(sys.argv[at + 1]), Path(sys.argv[at + 2]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    records = {}
    for name in arguments.only.split(","):
        records[name] = {"case": case_of(name), "ranks": measure(case_of(name))}
        first = records[name]["ranks"][0]
        print(
            name,
            {k: f"{v / 2**20:.0f}" for k, v in first["phases"].items()},
            f"init {first['after_init'] / 2**20:.0f} base {first['baseline'] / 2**20:.0f}",
            first["wire"],
            flush=True,
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(records, indent=1), "utf-8")


if __name__ == "__main__":
    main()
