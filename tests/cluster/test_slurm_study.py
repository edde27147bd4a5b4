"""A study on a real Slurm of two hosts: cells wait for their base, are stopped, resume, end in tables."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gaguide.study.record_files import read_study
from gaguide.study.records import HELD_OUT
from tests.cluster.hosts import Hosts
from tests.cluster.slurm import Slurm, slurm
from tests.study.test_run import STUDY
from tests.support.patience import wait_until

pytestmark = pytest.mark.cluster

# Of a tuned cell: more than it does in the 60 s of GraceTime, because Slurm signals the shell of a preempted
# job only when they are over.
STEPS = 4000


@pytest.fixture(scope="module")
def cluster(two: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(two, tmp_path_factory.mktemp("slurm")) as made:
        yield made


def hand_in(cluster: Slurm, file: Path) -> dict[str, str]:
    """`gaguide study run --slurm` on the first host; job number by the cell's column."""
    words = ("--slurm", "--time", "00:20:00", "--setup", "export OMP_NUM_THREADS=1")
    said = cluster.run("gaguide", "study", "run", file, *words, timeout=120)
    return {column: job for job, column in re.findall(r"^job (\d+): pico-(.+?)(?:-s0)?-\w{10}\b", said, re.M)}


def logs(folder: Path) -> str:
    paths = [*folder.glob("out/slurm/*.log"), *folder.glob("out/cells/*/*.log")]
    return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(paths))


def start_requeued(cluster: Slurm, job: str) -> None:
    """Start a requeued job; not in the second of its requeue, in which Slurm revokes its credential."""
    time.sleep(3)
    cluster.now(job)


def wait_for_steps(folder: Path, column: str, count: int) -> None:
    def reached() -> bool:
        records = folder.glob(f"out/cells/pico-{column}-*/metrics.jsonl")
        return any(len(path.read_text().splitlines()) >= count for path in records)

    wait_until(reached, 200, lambda: logs(folder))


def test_a_study_goes_through_slurm_to_its_tables(cluster: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"  # Slurm splits lines at spaces
    folder.mkdir()
    file = folder / "study.yaml"
    changes = {
        "output": str(folder / "out"),
        "tokens": STEPS * 4 * 32,
        "experiments": ["original", "1-negation"],
    }
    file.write_text(yaml.safe_dump({**STUDY, **changes}))
    jobs = hand_in(cluster, file)
    assert set(jobs) == {"base", "original", "1-negation"}
    assert "afterok" in cluster.state(jobs["1-negation"])["Dependency"]
    assert hand_in(cluster, file) == jobs, "what is in the queue is not handed in again"

    # Before its time limit a job's shell gets TERM: the cell saves, and the job goes back into the queue.
    wait_for_steps(folder, "1-negation", 5)
    cluster.run("scancel", "--batch", "--signal=TERM", jobs["1-negation"])
    cluster.wait_for(jobs["1-negation"], "PENDING", seconds=60)
    (cell,) = folder.glob("out/cells/pico-1-negation-*")
    done = len((cell / "metrics.jsonl").read_text().splitlines())
    assert 5 <= done < STEPS and list((cell / "checkpoints").glob(f"step-{done:08}")), logs(folder)
    start_requeued(cluster, jobs["1-negation"])

    # Preempted, and the GraceTime over, everything in the job gets TERM, and the shell passes its own on:
    # that is still one wish.
    wait_for_steps(folder, "1-negation", done + 5)
    urgent = ("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    other = cluster.run(*urgent, "--wrap=sleep 1").strip()
    cluster.wait_for(other, "COMPLETED", seconds=120)
    cluster.wait_for(jobs["1-negation"], "PENDING", seconds=60)
    again = len((cell / "metrics.jsonl").read_text().splitlines())
    assert list((cell / "checkpoints").glob(f"step-{again:08}")), logs(folder)
    start_requeued(cluster, jobs["1-negation"])

    for job in jobs.values():
        table = cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", seconds=900)
        assert table["JobState"] == "COMPLETED", logs(folder)
    said = cluster.run("gaguide", "study", "collect", file, timeout=120)
    assert "3 of 3 cells are done" in said
    records = read_study(folder / "out")
    assert {cell.state for cell in records.cells} == {"done"}
    assert {row.experiment for row in records.comparisons} == {"1-negation"}
    assert any(row.task == HELD_OUT for row in records.means) and records.attention


def test_a_cancelled_cell_does_not_come_back(cluster: Slurm, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    pretrain = {"tokens": 100_000 * 4 * 32}
    changes = {"output": str(tmp_path / "out"), "pretrain": pretrain, "experiments": ["original"]}
    file.write_text(yaml.safe_dump({**STUDY, **changes}))
    jobs = hand_in(cluster, file)
    wait_for_steps(tmp_path, "base", 5)
    cluster.run("scancel", jobs["base"])
    cluster.wait_for(jobs["base"], "CANCELLED", seconds=60)
    cluster.hosts.wait_for_no_ranks(40)
    time.sleep(3)
    assert cluster.state(jobs["base"])["JobState"] == "CANCELLED", logs(tmp_path)
    assert cluster.state(jobs["original"])["JobState"] == "CANCELLED", "what starts from it never runs"
    assert "back into the queue" not in logs(tmp_path)
