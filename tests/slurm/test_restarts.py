"""When a job's script puts the job back into the queue, run by bash with stand-ins for srun and scontrol.

tests/cluster runs the scripts on a real Slurm.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from gaguide.slurm import JobRequest, render
from tests.support.ranks import DS_CONFIGS, REPOSITORY

pytestmark = pytest.mark.processes

CODES = {"train": 75, "cell": 130}
"""The exit code by which a program says that it was asked to stop."""


@dataclass
class Cluster:
    """Stand-ins for Slurm's commands; the program of the job is a shell script."""

    folder: Path

    def program(self, *lines: str) -> Path:
        """A stand-in for Python that runs `lines` of bash."""
        path = self.folder / "program"
        path.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
        path.chmod(0o755)
        return path

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One start of the job."""
        path = self.folder / "job.sbatch"
        path.write_text(script)
        environ = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n0",
        }
        return subprocess.run(
            ["bash", str(path), *arguments], env=environ, cwd=self.folder, capture_output=True, text=True
        )

    def requeues(self) -> int:
        """How often a job was put back into the queue."""
        calls = self.folder / "calls"
        return calls.read_text().count("requeue 7") if calls.exists() else 0


@pytest.fixture()
def cluster(tmp_path: Path) -> Cluster:
    programs = {
        "srun": 'while [[ "$1" == -* ]]; do shift; done; exec "$@"',
        "scontrol": f'echo "$@" >>{tmp_path}/calls; echo "JobState=RUNNING Requeue=1"',
        "sleep": ":",
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return Cluster(tmp_path)


def saving(step: str) -> str:
    """A line of bash that makes a checkpoint."""
    return f"mkdir -p run/checkpoints/step-{step}"


def script(cluster: Cluster, kind: str, program: Path, **more: object) -> str:
    """The rendered script of a job whose run is in `run`."""
    request = JobRequest(kind, "n", (), python=str(program), output=cluster.folder / "run", **more)  # type: ignore[arg-type]
    return render(request, cluster.folder)


@pytest.mark.parametrize("kind", CODES)
def test_restarts_without_a_newer_checkpoint_are_limited(cluster: Cluster, kind: str) -> None:
    text = script(cluster, kind, cluster.program(f"exit {CODES[kind]}"))
    starts = [cluster.run(text) for _ in range(4)]
    assert {start.returncode for start in starts} == {CODES[kind]}
    assert cluster.requeues() == 3
    for count, start in enumerate(starts[:3], 1):
        assert f"without a newer checkpoint (restart {count} of at most 3); back into" in start.stdout
        assert "with a checkpoint" not in start.stdout
    assert "4 starts in a row ended without a newer checkpoint; it does not restart again" in starts[3].stdout
    assert not list(cluster.folder.glob("*.restarts")), "a later submission counts from the beginning"


@pytest.mark.parametrize("kind", CODES)
def test_a_newer_checkpoint_restarts_without_limit(cluster: Cluster, kind: str) -> None:
    old = cluster.program("mkdir -p run/checkpoints; touch run/here", f"exit {CODES[kind]}")
    new = f"{saving('$(printf %08d $(ls run/checkpoints | wc -l))')}; exit {CODES[kind]}"
    text = script(cluster, kind, old, max_restarts=1)
    for _ in range(3):
        assert "without a newer checkpoint (restart 1 of" in cluster.run(text).stdout
        cluster.program(new)
        for _ in range(3):
            assert "stopped with a checkpoint; back into the queue" in cluster.run(text).stdout
        cluster.program(f"exit {CODES[kind]}")
    assert cluster.requeues() == 12


def test_an_evaluation_that_scores_more_examples_makes_progress(cluster: Cluster) -> None:
    program = cluster.program("mkdir -p run/evaluation; echo score >>run/evaluation/scores", "exit 130")
    text = script(cluster, "cell", program, max_restarts=0)
    for _ in range(3):
        assert "back into the queue" in cluster.run(text).stdout


def test_a_chain_without_progress_ends(cluster: Cluster) -> None:
    request = JobRequest(
        "train", "n", (), python=str(cluster.program("exit 75")), output=cluster.folder / "run", chain=9
    )
    text = render(request, cluster.folder, ended=cluster.folder / "n.ended")
    printed = [cluster.run(text) for _ in range(5)]
    assert [start.returncode for start in printed] == [75, 75, 75, 75, 0] and cluster.requeues() == 0
    assert "(no start came to a newer checkpoint); nothing is left to do" in printed[4].stdout


def test_a_script_that_is_not_rendered_asks_the_program_for_its_output(cluster: Cluster) -> None:
    """`sbatch launch/slurm/train.sbatch`: the run's folder is in its arguments or in its YAML."""
    config = cluster.folder / "run.yaml"
    recipe = yaml.safe_load((REPOSITORY / "launch/recipes/gpt2.yaml").read_text())
    config.write_text(yaml.safe_dump(recipe | {"output": str(cluster.folder / "run")}))
    cluster.program(
        'if [[ "$2" == gaguide.train ]]; then',
        saving("00000004"),
        "exit 75; fi",
        f'exec {sys.executable} "$@"',
    )
    text = (REPOSITORY / "launch/slurm/train.sbatch").read_text().replace("python=python", "python=./program")
    words = ("--deepspeed", str(DS_CONFIGS / "zero2.json"), "--config", str(config))
    done = cluster.run(text, *words)
    assert "stopped with a checkpoint; back into the queue" in done.stdout, done
