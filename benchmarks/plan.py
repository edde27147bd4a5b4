"""Compares predictions of `gaguide plan` with measurements: memory of a rank and bytes on the wire.

    python benchmarks/plan.py [--only zero2-bf16-2,…] [--output FILE.json]
    python benchmarks/plan.py host

Each case starts real ranks under `deepspeed` (gloo, CPU): gaguide's engine on a GPT-2, three steps. Memory
is the process's high-water mark (VmHWM, reset before each phase of the last step) minus its resident set
after the imports, after a tiny model has trained in the same process (so that one-time allocations of the
libraries do not count) and after the process group has met. glibc returns every block above 64 KiB to the
kernel at once (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_), so freed tensors do not count. Bytes on the
wire are those of DeepSpeed's comms logger over the last step, by operation.

`host` measures what a block costs the host: forward and backward of GPT-2s so narrow and short that the
work is launching operations and running DeepSpeed's hooks. It reports processor time of 12 blocks minus
that of 4, by ZeRO stage.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
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
    "zero3-bf16-2-few-live": {"ranks": 2, "stage": 3, "precision": "bf16", "live": 40_000_000},
    "zero2-bf16-2-short": {"ranks": 2, "stage": 2, "precision": "bf16", "batch": 1, "length": 64},
    "zero3-bf16-2-short": {"ranks": 2, "stage": 3, "precision": "bf16", "batch": 1, "length": 64},
}


def case_of(name: str) -> dict[str, Any]:
    plain = {"accumulation": 1, "checkpointing": False, "guided": 0, "live": None}
    return BASE | plain | CASES[name]


# --- a rank -------------------------------------------------------------------------------------------------


def resident(field: str = "VmRSS") -> int:
    """Resident bytes of this process: now (VmRSS) or at most so far (VmHWM)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


class Phases:
    """Peak bytes above the baseline, by phase of a step."""

    def __init__(self, baseline: int) -> None:
        self.baseline, self.peaks = baseline, {}
        reset_peak()

    def end(self, phase: str) -> None:
        peak = resident("VmHWM") - self.baseline
        self.peaks[phase] = max(peak, self.peaks.get(phase, 0))
        reset_peak()


def child(case: dict[str, Any], folder: Path) -> None:
    import deepspeed.comm.comm as comm
    import torch
    from transformers import GPT2LMHeadModel

    from gaguide.distributed import World, start, stop
    from gaguide.engine.build import build_engine
    from gaguide.model import SIZES, fuse_activations, scratch_config

    world = World.from_environment()
    start(world)
    warm_up(case)
    gc.collect()
    baseline = resident()
    config = scratch_config(SIZES[case["size"]], 50_257, None)
    config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.0
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).train()
    fuse_activations(model)
    model.loss_type, model.config.use_cache = "ForCausalLM", False
    engine = build_engine(model, *settings_of(case, world.size), world)
    after_init = resident() - baseline
    with ExitStack() as stack:
        guidance = stack.enter_context(guide_of(engine.module, case)) if case["guided"] else None
        for step in range(3):
            comm.comms_logger.reset_data()
            phases = Phases(baseline)
            for micro in range(case["accumulation"]):
                torch.manual_seed(1000 * step + 10 * micro + world.rank)
                ids_BT = torch.randint(0, 50_257, (case["batch"], case["length"]))
                loss = engine.lm_loss({"input_ids": ids_BT})
                if guidance is not None:
                    loss = loss + guidance.loss()
                phases.end("forward")
                engine.backward(loss)
                phases.end("backward")
            engine.step(1e-5)
            phases.end("update")
    wire = {
        name: [[size, numbers[0]] for size, numbers in by_size.items()]
        for name, by_size in comm.comms_logger.get_raw_data().items()
    }
    record = {"after_init": after_init, "baseline": baseline, "phases": phases.peaks, "wire": wire}
    (folder / f"{world.rank}.json").write_text(json.dumps(record), "utf-8")
    stop()


def warm_up(case: dict[str, Any]) -> None:
    """Train a tiny model once, so that what oneDNN, autograd and torch allocate once is not in the peak."""
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
    config.pop("torch_autocast", None)
    if case["live"]:
        few = {"stage3_max_live_parameters": case["live"], "stage3_max_reuse_distance": case["live"]}
        config["zero_optimization"] |= few | {"stage3_prefetch_bucket_size": case["live"] // 4}
    config["comms_logger"] = {"enabled": True, "prof_all": True, "verbose": False, "debug": False}
    return config


def settings_of(case: dict[str, Any], ranks: int) -> tuple[Any, Any]:
    """The resolved DeepSpeed JSON and the training section of a case."""
    from gaguide.config import plan_batch
    from gaguide.config.run import TrainSection
    from gaguide.engine.config import DevicePrecisions, RunValues, resolve_deepspeed

    batch = plan_batch(case["batch"] * case["accumulation"] * ranks, case["batch"], ranks)
    train = TrainSection(
        global_batch=batch.global_batch, steps=1, gradient_checkpointing=case["checkpointing"]
    )
    resolved = resolve_deepspeed(
        deepspeed_json(case), batch, RunValues(1.0, Path()), DevicePrecisions(True, True, False)
    )
    return resolved, train


def guide_of(model: Any, case: dict[str, Any]) -> Any:
    from gaguide.guidance import Assignment, GuidancePlan, TokenSet, guide

    pattern = TokenSet("words", frozenset(range(100, 600)))
    return guide(model, GuidancePlan((Assignment(pattern, tuple(range(case["guided"]))),)))


# --- the parent ---------------------------------------------------------------------------------------------


def measure(case: dict[str, Any]) -> list[dict[str, Any]]:
    """One record per rank."""
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


def predicted(case: dict[str, Any]) -> Any:
    """The estimate of a case. Neither memory nor bytes depend on the device, so it keeps its default."""
    from gaguide.cost import CostRequest, estimate, with_deepspeed
    from gaguide.model import SIZES, scratch_config, shape_of

    config = scratch_config(SIZES[case["size"]], 50_257, None)
    config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.0
    request = CostRequest(
        shape_of(config),
        gpus=case["ranks"],
        block_length=case["length"],
        global_batch=case["batch"] * case["accumulation"] * case["ranks"],
        micro_batch=case["batch"],
        checkpointing=case["checkpointing"],
        guided_heads=case["guided"],
    )
    return estimate(with_deepspeed(request, deepspeed_json(case)))


def payload(wire: dict[str, list[list[int]]], ranks: int) -> dict[str, int]:
    """Bytes of whole tensors by operation. The logger counts a rank's share of an all-gather."""
    names = {"all_gather_into_tensor": "all_gather", "reduce_scatter_tensor": "reduce_scatter"}
    total = {}
    for name, sizes in wire.items():
        factor = ranks if name == "all_gather_into_tensor" else 1
        total[names.get(name, name)] = factor * sum(size * count for size, count in sizes)
    return total


def row(name: str, record: dict[str, Any]) -> str:
    """One row of the Markdown table."""
    cost, ranks = predicted(record["case"]), record["ranks"]
    measured = max(max(rank["phases"].values()) for rank in ranks)
    counted = {operation: 0 for operation in ("all_reduce", "reduce_scatter", "all_gather")}
    for one in cost.wire:
        counted[one.operation] += one.payload
    logged = payload(ranks[0]["wire"], len(ranks))
    wire = "—"
    if len(ranks) > 1:
        wire = "; ".join(
            f"{operation} {counted[operation] / 1e6:.1f} / {logged.get(operation, 0) / 1e6:.1f}"
            for operation in counted
            if counted[operation] or logged.get(operation, 0) > 1000
        )
    megabytes = cost.memory.peak / 2**20, measured / 2**20
    return (
        f"| {name} | {cost.memory.peak_phase} | {megabytes[0]:,.0f} | {megabytes[1]:,.0f} | "
        f"{megabytes[0] / megabytes[1] - 1:+.1%} | {wire} |"
    )


def host_child(stage: int) -> None:
    """Print milliseconds per block, forward and backward, at `stage`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gaguide.distributed import World, start, stop
    from gaguide.engine.build import build_engine

    world = World.from_environment()
    start(world)
    case = case_of("zero0-fp32-1") | {"stage": stage}
    seconds = []
    for layers in (4, 12):
        config = GPT2Config(n_layer=layers, n_embd=32, n_head=2, vocab_size=128, n_positions=8, attn_pdrop=0)
        model = GPT2LMHeadModel(config).train()
        model.loss_type = "ForCausalLM"
        engine = build_engine(model, *settings_of(case, 1), world)
        ids_BT = torch.zeros(2, 4, dtype=torch.long)
        times = []
        for _ in range(30):
            begin = time.process_time()
            engine.backward(engine.lm_loss({"input_ids": ids_BT}))
            times.append(time.process_time() - begin)
            engine.step(1e-5)
        seconds.append(statistics.median(times[10:]))
    block = 1000 * (seconds[1] - seconds[0]) / 8
    print(f"HOST stage {stage}: {block:.2f} ms of processor time per block, forward and backward")
    stop()


def host() -> None:
    for stage in (0, 1, 2, 3):
        command = [sys.executable, __file__, "host-child", str(stage)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        print("".join(line + "\n" for line in done.stdout.splitlines() if line.startswith("HOST")), end="")
        if done.returncode:
            sys.exit(done.stdout + done.stderr)


def main() -> None:
    if sys.argv[1:2] == ["host-child"]:
        host_child(int(sys.argv[2]))
        return
    if sys.argv[1:2] == ["host"]:
        host()
        return
    if "child" in sys.argv[1:3]:  # the launcher inserts --local_rank before it
        at = sys.argv.index("child")
        child(json.loads(sys.argv[at + 1]), Path(sys.argv[at + 2]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--output", type=Path, help="records as JSON")
    arguments = parser.parse_args()
    print("| case | peak at | predicted MiB | measured MiB | off by | payload, MB: predicted / logged |")
    print("|---|---|---|---|---|---|")
    records = {}
    for name in arguments.only.split(","):
        records[name] = {"case": case_of(name), "ranks": measure(case_of(name))}
        print(row(name, records[name]), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(records, indent=1), "utf-8")


if __name__ == "__main__":
    main()
