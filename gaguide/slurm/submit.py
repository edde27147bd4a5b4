"""Submits jobs: writes the script next to the job's logs and gives it to sbatch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gaguide.errors import UserError
from gaguide.files import write_text
from gaguide.slurm.render import render
from gaguide.slurm.request import JobRequest


@dataclass(frozen=True)
class PreparedJob:
    """A script that is ready to be written and submitted."""

    script: str
    """Text of the script."""
    path: Path
    """Where it will be written."""
    chain: int
    """Number of jobs that run it one after another."""

    def command(self, after: str | None) -> list[str]:
        """sbatch's command line for the job that follows job `after`; None for the first."""
        return sbatch_command(self.path, *([f"--dependency=afterany:{after}"] if after else []))


def prepare(request: JobRequest, logs: Path) -> PreparedJob:
    """Render the script of `request`; nothing is written yet."""
    logs = logs.expanduser().absolute()
    stem = logs / f"{request.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    ended = stem.with_name(stem.name + ".ended") if request.chain > 1 else None
    return PreparedJob(render(request, logs, ended), stem.with_name(stem.name + ".sbatch"), request.chain)


def submit(prepared: PreparedJob) -> list[str]:
    """Write the script and submit the jobs; returns their numbers in order.

    Raises a `UserError` if there is no sbatch, the folder cannot be written, or sbatch refuses a job.
    """
    check_sbatch("sbatch")
    try:
        prepared.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(prepared.path, prepared.script)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise UserError.of("--logs", problem, "name another folder", str(prepared.path.parent)) from None
    jobs: list[str] = []
    for _ in range(prepared.chain):
        jobs.append(run_sbatch(prepared.command(jobs[-1] if jobs else None), jobs))
    return jobs


# Variables of a surrounding job and its ranks: sbatch would pass them on to the new job.
_OF_A_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "PMI_", "PMIX_", "OMPI_")
_OF_A_RANK = frozenset(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT",
                        "CROSS_RANK", "CROSS_SIZE", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
                        "GPU_DEVICE_ORDINAL", "TORCHELASTIC_RUN_ID"))  # fmt: skip


def submission_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for sbatch: inside a job, without that job's variables; otherwise `environ`.

    SLURM_CONF, by which the commands find the cluster, stays.
    """
    if "SLURM_JOB_ID" not in environ and "SLURM_JOBID" not in environ:
        return dict(environ)
    return {
        name: value
        for name, value in environ.items()
        if name == "SLURM_CONF" or not (name.startswith(_OF_A_JOB) or name in _OF_A_RANK)
    }


def check_array(parts: int) -> None:
    """Raise a `UserError` if the cluster does not allow a job array of `parts` tasks, counted from 1.

    If the cluster does not answer, sbatch decides.
    """
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    if found and parts >= int(found[1]):
        problem = f"must be at most {int(found[1]) - 1}, because MaxArraySize of this cluster is {found[1]}"
        remedy = "give fewer parts: each then builds a larger share, with --cpus processes"
        raise UserError.of("--parts", problem, remedy, parts)


def check_sbatch(field: str) -> None:
    """Raise a `UserError` under `field` if sbatch is not on PATH."""
    if shutil.which("sbatch") is None:
        remedy = "run this on a login host of the cluster, or print the script with --dry-run"
        raise UserError.of(field, "is not on PATH", remedy)


def sbatch_command(script: Path, *options: str) -> list[str]:
    """The command line that submits `script` and prints only the job's number."""
    return ["sbatch", "--parsable", *options, str(script)]


def run_sbatch(command: list[str], queued: Iterable[str] = ()) -> str:
    """Run a command made by `sbatch_command`; returns the job's number.

    Raises a `UserError` with sbatch's reason if it refuses; it names the jobs in `queued`, which were
    submitted before.
    """
    environment = submission_environment()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return done.stdout.strip().partition(";")[0]
    reason = done.stderr.strip().removeprefix("sbatch: error: ").splitlines() or ["no message"]
    jobs = ", ".join(queued)
    already = f" (already in the queue: {jobs}; to remove them: scancel)" if jobs else ""
    remedy = "correct the option it names; sinfo and sacctmgr list valid values"
    raise UserError.of("sbatch", f"refused the job: {'; '.join(reason)}{already}", remedy)


def pending_reason(job: str) -> str:
    """Slurm's reason why a job is pending, such as Priority or PartitionConfig; empty if there is none."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%r"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    reason = (done.stdout.split() or [""])[0]
    return "" if reason == "None" else reason
