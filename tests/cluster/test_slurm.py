"""gaguide submit on a real Slurm of two hosts: training, preemption, resuming, chains, evaluation, data."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaguide.data import read_manifest
from gaguide.log import read_metrics
from tests.cluster.conftest import arguments, losses
from tests.cluster.hosts import Hosts, hosts
from tests.cluster.slurm import Slurm, slurm
from tests.support.patience import patience, wait_until
from tests.support.ranks import EVALUATE, TRAIN, run_ranks

pytestmark = pytest.mark.cluster

LONG = ("--train.steps", "60", "--checkpoint.every", "0")


@pytest.fixture(scope="module")
def cluster(two: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(two, tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def expected_long(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the longer run, uninterrupted on one host."""
    output = tmp_path_factory.mktemp("one-host-long") / "run"
    done = run_ranks(TRAIN, arguments(output, *LONG), 2)
    assert done.returncode == 0, done.stdout
    return losses(output)


def submit(cluster: Slurm, kind: str, logs: Path, *words: str | Path) -> list[str]:
    """`gaguide submit` on the first host; the jobs' numbers."""
    command = ["gaguide", "submit", kind, "--logs", logs, "--setup", "export OMP_NUM_THREADS=1", *words]
    return re.findall(r"^job (\d+)", cluster.run(*command), re.MULTILINE)


def log_of(logs: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(logs.glob("*.log")))


def wait_for_steps(output: Path, count: int, seconds: float = 120) -> None:
    metrics = output / "metrics.jsonl"
    wait_until(
        lambda: metrics.exists() and len(read_metrics(metrics)) >= count,
        seconds,
        lambda: f"{output} has not reached step {count}",
    )


@pytest.fixture(scope="module")
def trained(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went over two nodes."""
    folder = tmp_path_factory.mktemp("trained")
    (job,) = submit(cluster, "train", folder, "--nodes", "2", *arguments(folder / "run"))
    table = cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert table["JobState"] == "COMPLETED", log_of(folder)
    return folder / "run"


def test_two_nodes_give_the_losses_of_one_host(trained: Path, expected: dict[int, float]) -> None:
    assert losses(trained) == expected


def test_a_preempted_job_resumes_with_the_same_losses(
    cluster: Slurm, expected_long: dict[int, float], tmp_path: Path
) -> None:
    """Once by USR1, as before the time limit; once by Slurm itself, for a job of a better partition."""
    output = tmp_path / "run"
    (job,) = submit(cluster, "train", tmp_path, "--nodes", "2", *arguments(output, *LONG))
    wait_for_steps(output, 8)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait_for(job, "PENDING", seconds=60)
    done = len(losses(output))
    assert 8 <= done < 60 and "back into the queue" in log_of(tmp_path)
    assert list((output / "checkpoints").glob(f"step-{done:08}"))
    cluster.now(job)

    wait_for_steps(output, done + 8)
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    other = cluster.run(*urgent, "--wrap=sleep 1").strip()
    cluster.wait_for(other, "COMPLETED", seconds=120)
    cluster.wait_for(job, "PENDING", seconds=60)
    assert done + 8 <= len(losses(output)) < 60
    cluster.now(job)
    table = cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert (table["JobState"], table["Restarts"]) == ("COMPLETED", "2"), log_of(tmp_path)
    assert losses(output) == expected_long


def test_a_chain_resumes_where_the_previous_job_stopped(
    cluster: Slurm, expected_long: dict[int, float], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    jobs = submit(cluster, "train", tmp_path, "--nodes", "2", "--chain", "3", *arguments(output, *LONG))
    assert len(jobs) == 3
    wait_for_steps(output, 8)
    cluster.run("scancel", "--signal=USR1", jobs[0])
    ended = cluster.wait_for(jobs[0], "FAILED", "COMPLETED", seconds=60)
    assert ended["ExitCode"] == "75:0", log_of(tmp_path)
    for job in jobs[1:]:
        assert cluster.wait_for(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log_of(tmp_path)
    assert losses(output) == expected_long
    assert "(trained to the end); nothing is left to do" in log_of(tmp_path)


def test_the_time_limit_requeues_and_a_person_ends(cluster: Slurm, tmp_path: Path) -> None:
    """Slurm counts in minutes, and may send the signal up to one early."""
    output = tmp_path / "run"
    limit = ("--nodes", "2", "--time", "2", "--signal-seconds", "60")
    forever = ("--train.steps", "100000", "--checkpoint.every", "0", "--train.log_every", "5")
    (job,) = submit(cluster, "train", tmp_path, *limit, *arguments(output, *forever))
    wait_for_steps(output, 4)
    cluster.wait_for(job, "PENDING", seconds=180)
    (first,) = (output / "checkpoints").glob("step-*")
    cluster.now(job)
    cluster.wait_for(job, "RUNNING", seconds=60)
    wait_until(lambda: "resuming after step" in log_of(tmp_path), 90, lambda: log_of(tmp_path))
    time.sleep(3)
    cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED", seconds=60)
    cluster.hosts.wait_for_no_ranks(40)
    assert log_of(tmp_path).count("back into the queue") == 1, "a cancelled job does not come back"
    assert [path.name for path in (output / "checkpoints").glob("step-*")] != [first.name], "it saved again"


def test_a_job_that_never_comes_to_a_checkpoint_does_not_restart_for_ever(
    cluster: Slurm, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/bash\necho stopped before the first step; exit 75\n")
    program.chmod(0o755)
    words = ("--python", program, "--max-restarts", "1", *arguments(tmp_path / "run"))
    (job,) = submit(cluster, "train", tmp_path, *words)
    # Before it first starts it is pending too.
    wait_until(lambda: "back into the queue" in log_of(tmp_path), 60, lambda: log_of(tmp_path))
    assert "without a newer checkpoint (restart 1 of at most 1); back into the queue" in log_of(tmp_path)
    cluster.wait_for(job, "PENDING", seconds=60)
    time.sleep(3)  # not in the second of its requeue, in which Slurm revokes its credential
    cluster.now(job)
    assert cluster.wait_for(job, "FAILED", "COMPLETED", seconds=60)["ExitCode"] == "75:0"
    assert "2 starts in a row ended without a newer checkpoint" in log_of(tmp_path)


_MEETS = """
from gaguide.distributed import World, all_gather, leave, start
world = World.from_environment()
start(world)
print(world.rank, all_gather(world.host), flush=True)
leave(0)
"""


def test_ranks_on_hosts_in_an_arbitrary_order_meet_at_rank_0(cluster: Slurm, tmp_path: Path) -> None:
    """Slurm's lists of hosts are sorted, and rank 0 is on the second."""
    (tmp_path / "hosts").write_text("node1\nnode0\n")
    (tmp_path / "meets.py").write_text(_MEETS)
    allocation = ("salloc", "--nodes=2", "--ntasks=2", "--distribution=arbitrary")
    step = ("srun", "--distribution=arbitrary", "python", tmp_path / "meets.py")
    said = cluster.run(*allocation, *step, timeout=patience(200), SLURM_HOSTFILE=str(tmp_path / "hosts"))
    assert {"0 ['node1', 'node0']", "1 ['node1', 'node0']"} <= set(said.splitlines()), said


def test_a_plain_python_in_a_step_of_several_hosts_shell_is_alone(cluster: Slurm, tmp_path: Path) -> None:
    """An interactive allocation's shell is a step of one task, whose SLURM_NTASKS is that of the job."""
    (tmp_path / "meets.py").write_text(_MEETS)
    shell = (
        "srun",
        "--nodes=1",
        "--ntasks=1",
        "--export=ALL,SLURM_NTASKS=2",
        "python",
        tmp_path / "meets.py",
    )
    said = cluster.run("salloc", "--nodes=2", "--ntasks=2", *shell, timeout=patience(200))
    assert "0 ['node0']" in said.splitlines(), said


def test_evaluation_over_two_nodes(cluster: Slurm, trained: Path, tmp_path: Path) -> None:
    words = ("--model", str(trained / "model"), "--tasks", "demo", "--limit", "40", "--output")
    (job,) = submit(cluster, "evaluate", tmp_path, "--nodes", "2", *words, tmp_path / "two")
    assert cluster.wait_for(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log_of(tmp_path)
    assert run_ranks(EVALUATE, [*words, str(tmp_path / "one")], 1).returncode == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["tasks"] == two["tasks"]


def test_data_by_a_job_array(cluster: Slurm, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"not {at}, but {at * at}. " * 20}) + "\n" for at in range(300))
    )
    words = ["--source", tmp_path / "text.jsonl", "--tokenizer", trained / "model", "--shard-tokens", "8000"]
    (job,) = submit(
        cluster, "data", tmp_path, "--parts", "2", "--cpus", "1", *words, "--output", tmp_path / "array"
    )
    cluster.wait_for(job, "COMPLETED", "FAILED")
    wait_until(lambda: not cluster.run("squeue", "-h", "-j", job).strip())
    built = cluster.run("gaguide", "data", "build", *words, "--workers", "1", "--output", tmp_path / "one")
    assert "300 documents" in built
    assert read_manifest(tmp_path / "array") == read_manifest(tmp_path / "one"), log_of(tmp_path)


def test_a_lost_host_requeues_and_the_run_resumes_on_the_other(
    expected_long: dict[int, float], tmp_path: Path
) -> None:
    """Slurm requeues the job; a person submits it again for the remaining host."""
    output, logs = tmp_path / "run", tmp_path / "logs"
    (tmp_path / "slurm").mkdir()
    with hosts(2, tmp_path) as broken, slurm(broken, tmp_path / "slurm") as cluster:
        often = (*LONG[:2], "--checkpoint.every", "5", "--train.hang_timeout", str(patience(30)))
        (job,) = submit(cluster, "train", logs, "--nodes", "2", *arguments(output, *often))
        wait_for_steps(output, 8)
        broken[1].power_off()
        table = cluster.wait_for(job, "PENDING", seconds=150)
        assert table["Restarts"] == "1", log_of(logs)
        broken.wait_for_no_ranks(60)
        cluster.run("scancel", job)
        one = ("--nodes", "1", "--ranks-per-node", "2")
        (job,) = submit(cluster, "train", logs, *one, *arguments(output, *often))
        assert cluster.wait_for(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log_of(logs)
    assert "resuming after step" in log_of(logs) and losses(output) == expected_long
