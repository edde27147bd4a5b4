"""A study as jobs of Slurm: one for each cell that is not done, after the job of the base it starts from.

A job runs `gaguide study run FILE --cell ID` on one node, so states, logs and evaluations are those of a
local study. Before its time limit the cell saves and the job goes back into the queue.
"""

from __future__ import annotations

import getpass
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from gaguide.errors import Fault, UserError
from gaguide.files import write_json, write_text
from gaguide.slurm import Request
from gaguide.slurm.render import block, directives
from gaguide.study.grid import REPOSITORY, Cell, Grid
from gaguide.study.state import read_state

_JOBS = "jobs.json"
_BODY = """\
# One cell of the study {study}; made by gaguide study run --slurm.
{setup}
export PYTHONPATH={repository}${{PYTHONPATH:+:$PYTHONPATH}}
{command} &
work=$!
trap 'kill -TERM "$work" 2>/dev/null' TERM
until wait "$work"; code=$?; ! kill -0 "$work" 2>/dev/null; do :; done
wait "$work" 2>/dev/null; code=$?
# 130: it was told to stop, and goes on from its checkpoint; not where a person has cancelled the job.
state() {{ scontrol show job --oneliner "$SLURM_JOB_ID"; }}
if [[ $code == 130 && "$(state)" == *JobState=RUNNING* && "$(state)" == *Requeue=1* ]]; then
    echo "job $SLURM_JOB_ID: stopped; back into the queue"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
"""


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
    requests = {cell.id: _request(cell, options) for cell in grid.cells}
    faults = [fault for request in requests.values() for fault in request.faults()]
    if shutil.which("sbatch") is None:
        faults.append(Fault("--slurm", "there is no sbatch on PATH", "log in where Slurm is"))
    if faults:
        raise UserError(faults)
    folder = grid.folder / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    # As resolved, so that a job needs neither the overrides nor a shipped study's place.
    tree = {**grid.study.model_dump(mode="json"), "output": str(grid.folder)}
    study = folder / "study.yaml"
    write_text(study, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    queued = _queued(folder / _JOBS)
    new: dict[str, str] = {}
    for cell in grid.cells:
        if cell.id in queued or read_state(grid, cell).state in ("done", "running"):
            continue
        path = folder / f"{cell.id}.sbatch"
        write_text(path, job_script(grid, cell, requests[cell.id], study))
        new[cell.id] = _sbatch(path, (queued | new).get(cell.base or ""), new)
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


def job_script(grid: Grid, cell: Cell, request: Request, study: Path) -> str:
    """The job of one cell."""
    lines = {
        **directives(request, grid.folder / "slurm"),
        "signal": f"B:TERM@{request.signal_seconds}",
        "open-mode": "append",
    }
    command = [request.python, "-c", "from gaguide.cli import main; main()", "study", "run", str(study)]
    command += ["--cell", cell.id, "--ranks", str(cell.ranks)]
    body = _BODY.format(
        study=grid.study.name,
        setup="\n".join(f"{line} || exit" for line in request.setup),
        repository=shlex.quote(str(REPOSITORY)),
        command=shlex.join(command),
    )
    return "\n".join(["#!/bin/bash", *block(lines), body])


def _request(cell: Cell, options: SlurmOptions) -> Request:
    # One task: the cell starts its own ranks on the node.
    request = Request(
        "train", cell.id, (), gpus_per_node=options.gpus, ranks_per_node=1, time=options.time,
        partition=options.partition, account=options.account, setup=options.setup, options=options.options,
        python=sys.executable,
    )  # fmt: skip
    return replace(request, cpus_per_rank=None if options.gpus else cell.ranks)


def _sbatch(script: Path, after: str | None, handed: dict[str, str]) -> str:
    dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    done = subprocess.run(["sbatch", "--parsable", *dependency, str(script)], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().removeprefix("sbatch: error: ") or "no message"
        queued = f" (already in the queue: {', '.join(handed.values())})" if handed else ""
        remedy = "mend the option it names; sinfo and sacctmgr show what there is"
        raise UserError(Fault("sbatch", f"refused {script.name}: {reason}{queued}", remedy))
    return done.stdout.strip().partition(";")[0]
