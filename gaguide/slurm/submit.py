"""Handing a job in: its script is kept beside its logs, and sbatch is given that file."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import gaguide
from gaguide.errors import Fault, UserError
from gaguide.files import write_text
from gaguide.slurm.render import render
from gaguide.slurm.request import Kind, Request

REPOSITORY = Path(gaguide.__file__).resolve().parents[1]


@dataclass(frozen=True)
class Prepared:
    """A script and where it will be; `chain` jobs run it one after another."""

    script: str
    path: Path
    chain: int

    def command(self, after: str | None) -> list[str]:
        """sbatch's command line for the job that follows job `after`."""
        dependency = [f"--dependency=afterany:{after}"] if after else []
        return ["sbatch", "--parsable", *dependency, str(self.path)]


def template(kind: Kind) -> str:
    """The text of launch/slurm's script."""
    path = REPOSITORY / "launch" / "slurm" / f"{kind}.sbatch"
    try:
        return path.read_text("utf-8")
    except OSError:
        remedy = "run from a clone: git clone …, pip install --editable ."
        raise UserError(Fault("launch/slurm", "is not beside the package", remedy, str(path))) from None


def prepare(request: Request, folder: Path) -> Prepared:
    """The script of `request`, not yet written."""
    folder = folder.expanduser().absolute()
    stem = folder / f"{request.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    ended = stem.with_name(stem.name + ".ended") if request.chain > 1 else None
    script = render(template(request.kind), request, REPOSITORY, folder, ended)
    return Prepared(script, stem.with_name(stem.name + ".sbatch"), request.chain)


def submit(prepared: Prepared) -> list[str]:
    """Write the script and hand it in; the jobs' numbers in their order. Raises what sbatch has to say."""
    if shutil.which("sbatch") is None:
        remedy = "log in where Slurm is, or look at the script with --dry-run"
        raise UserError(Fault("sbatch", "is not on PATH: no Slurm here", remedy))
    try:
        prepared.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(prepared.path, prepared.script)
    except OSError as error:
        problem = f"cannot be written to ({error.strerror})"
        raise UserError(Fault("--logs", problem, "name another folder", str(prepared.path.parent))) from None
    jobs: list[str] = []
    for _ in range(prepared.chain):
        command = prepared.command(jobs[-1] if jobs else None)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().removeprefix("sbatch: error: ").splitlines() or ["no message"]
            queued = f" (already in the queue: {', '.join(jobs)}; scancel them)" if jobs else ""
            remedy = "mend the option it names; sinfo and sacctmgr show what there is"
            raise UserError(Fault("sbatch", f"refused the job: {'; '.join(reason)}{queued}", remedy))
        jobs.append(done.stdout.strip().partition(";")[0])
    return jobs


def waits_for(job: str) -> str:
    """Slurm's word for why a job does not run yet (PartitionConfig, Priority …); "" where it has none."""
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
