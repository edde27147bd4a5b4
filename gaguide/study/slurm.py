"""A study as jobs of Slurm: one for each cell that is not done, after the job of the base it starts from.

A job runs `gaguide study run FILE --cell ID` on one node, so states, logs and evaluations are those of a
local study. Before its time limit the cell saves and the job goes back into the queue.
"""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.files import write_json, write_text
from gaguide.slurm import JobRequest, render, run_sbatch
from gaguide.slurm.submit import check_sbatch, sbatch_command
from gaguide.study.grid import Cell, Grid
from gaguide.study.state import read_state

_JOBS = "jobs.json"


@dataclass(frozen=True)
class SlurmOptions:
    """What each job asks for; `gpus`: of its node, one rank each."""

    gpus: int | None = None
    time: str = "12:00:00"
    partition: str | None = None
    account: str | None = None
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Handed:
    """Job number by cell id: of what was handed in now, and of what is in the queue from an earlier time."""

    new: dict[str, str]
    queued: dict[str, str]


def submit_study(grid: Grid, options: SlurmOptions) -> Handed:
    """Hand in the cells that are neither done nor in the queue. Raises a `UserError` before the first."""
    folder = grid.folder / "slurm"
    study = folder / "study.yaml"
    requests = {cell.id: _request(cell, options, study) for cell in grid.cells}
    with FaultCollector() as faults:
        for request in requests.values():
            faults.add(*request.faults())
        faults.attempt(check_sbatch, "sbatch")
    folder.mkdir(parents=True, exist_ok=True)
    # As resolved, so that a job needs neither the overrides nor a shipped study's place.
    tree = {**grid.study.model_dump(mode="json"), "output": str(grid.folder)}
    write_text(study, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    queued = _queued(folder / _JOBS)
    new: dict[str, str] = {}
    for cell in grid.cells:
        if cell.id in queued or read_state(grid, cell).state in ("done", "running"):
            continue
        path = folder / f"{cell.id}.sbatch"
        write_text(path, render(requests[cell.id], folder))
        base = (queued | new).get(cell.base or "")
        after = [f"--dependency=afterok:{base}", "--kill-on-invalid-dep=yes"] if base else []
        new[cell.id] = run_sbatch(sbatch_command(path, *after), new.values())
        write_json(folder / _JOBS, queued | new)
    return Handed(new, queued)


def _queued(file: Path) -> dict[str, str]:
    """The jobs of this study that an earlier command handed in and that Slurm still holds."""
    known: dict[str, str] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if not known:
        return {}
    command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        problem = f"squeue failed: {done.stderr.strip() or 'no message'}"
        raise UserError(Fault("--slurm", problem, "try again, so that no cell is handed in twice"))
    held = set(done.stdout.split())
    return {cell: job for cell, job in known.items() if job in held}


def _request(cell: Cell, options: SlurmOptions, study: Path) -> JobRequest:
    # One task: the cell starts its own ranks on the node.
    words = ("study", "run", str(study), "--cell", cell.id, "--ranks", str(cell.ranks))
    return JobRequest(
        "cell", cell.id, words, gpus_per_node=options.gpus, ranks_per_node=1, time=options.time,
        cpus_per_rank=None if options.gpus else cell.ranks, partition=options.partition,
        account=options.account, setup=options.setup, options=options.options, python=sys.executable,
    )  # fmt: skip
