"""A study as Slurm jobs: one for each cell that is not done, after the job of the base it starts from.

A job runs `gaguide study run FILE --cell ID` on one node, so states, logs and evaluations are those of a
local study. Before its time limit the cell saves a checkpoint and the job is requeued.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from gaguide.errors import FaultCollector, UserError
from gaguide.files import write_json, write_settings, write_text
from gaguide.slurm import JobRequest, render, run_sbatch
from gaguide.slurm.submit import check_sbatch, sbatch_command
from gaguide.study.grid import Cell, Grid
from gaguide.study.state import needs_ablation, read_state

_JOBS = "jobs.json"


@dataclass(frozen=True)
class Submission:
    """Jobs of a study, as cell id → job number."""

    new: dict[str, str]
    """Jobs submitted now."""
    queued: dict[str, str]
    """Jobs of an earlier submission that are still in the queue."""


def submit_study(grid: Grid, job: JobRequest) -> Submission:
    """Submit the cells that are neither done nor in the queue, each as `job` with its own name and arguments.

    Raises `UserError` with all faults before the first job, and where Slurm refuses one.
    """
    folder = grid.folder / "slurm"
    study = folder / "study.yaml"
    requests = {cell.id: _request(grid, cell, job, study) for cell in grid.cells}
    with FaultCollector() as faults:
        faults.add(*grid.tasks.faults)
        for request in requests.values():
            faults.add(*request.faults())
        faults.attempt(check_sbatch, "sbatch")
    folder.mkdir(parents=True, exist_ok=True)
    # As resolved, so that a job needs neither the overrides nor the shipped study.
    resolved: dict[str, Any] = {"output": str(grid.folder), "budgets": {}, "budget": None}
    tree = {**grid.study.model_dump(mode="json"), **resolved}
    write_settings(study, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    queued = _queued(folder / _JOBS)
    new: dict[str, str] = {}
    for cell in grid.cells:
        state = read_state(grid, cell).state
        if cell.id in queued or state == "running" or (state == "done" and not needs_ablation(grid, cell)):
            continue
        path = folder / f"{cell.id}.sbatch"
        write_text(path, render(requests[cell.id], folder))
        held = queued | new
        after = _dependency(held.get(cell.base or ""), list(held.values()), job.max_running)
        new[cell.id] = run_sbatch(sbatch_command(path, *after), new.values())
        write_json(folder / _JOBS, queued | new)
    return Submission(new, queued)


def _dependency(base: str | None, held: Sequence[str], max_running: int | None) -> list[str]:
    """sbatch's options by which a job waits for its base, and for a place among `max_running` jobs.

    `held` are the study's jobs in the order of their submission. Each waits for the end of the one that was
    submitted `max_running` jobs before, so that no more than that can run.
    """
    awaited = [f"afterok:{base}"] if base else []
    if max_running is not None and len(held) >= max_running:
        awaited.append(f"afterany:{held[-max_running]}")
    if not awaited:
        return []
    return [f"--dependency={','.join(awaited)}", *(["--kill-on-invalid-dep=yes"] if base else [])]


def _queued(file: Path) -> dict[str, str]:
    """Jobs in the study's list of submitted jobs that Slurm still holds."""
    known: dict[str, str] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if not known:
        return {}
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%A"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        problem = f"squeue failed: {done.stderr.strip() or 'no message'}"
        raise UserError.of("--slurm", problem, "try again; without it a cell could be submitted twice")
    held = set(done.stdout.split())
    return {cell: job for cell, job in known.items() if job in held}


def _request(grid: Grid, cell: Cell, job: JobRequest, study: Path) -> JobRequest:
    # One task: the cell starts its own ranks on the node.
    words = ("study", "run", str(study), "--cell", cell.id, "--ranks", str(cell.ranks))
    return replace(
        job, name=cell.id, arguments=words, ranks_per_node=1, python=sys.executable, output=grid.path(cell),
        cpus_per_rank=None if job.gpus_per_node else cell.ranks,
    )  # fmt: skip
