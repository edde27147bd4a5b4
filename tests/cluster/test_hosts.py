"""Training over two hosts by every launcher that needs no scheduler, with the losses of one host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.conftest import arguments, losses
from tests.cluster.hosts import Hosts
from tests.support.patience import patience
from tests.support.ranks import REPOSITORY, TRAIN

pytestmark = pytest.mark.cluster


def wait_for_success(started: list[subprocess.Popen[bytes]], logs: list[Path], seconds: float = 150) -> str:
    """Wait for all to exit with code 0; returns their output."""
    try:
        codes = [process.wait(patience(seconds)) for process in started]
    finally:
        for process in started:
            process.kill()
    said = "\n".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in logs)
    assert not any(codes), f"{codes}\n{said}"
    return said


def deepspeed_env(folder: Path) -> str:
    """Path of the variables for pdsh's ranks; another number of threads would change the last bits."""
    path = folder / "deepspeed_env"
    path.write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\nHF_HUB_OFFLINE=1\n")
    return str(path)


def test_smoke_deepspeed_over_ssh(two: Hosts, expected: dict[int, float], tmp_path: Path) -> None:
    """`deepspeed --hostfile`: one command on one host starts the ranks of both through pdsh."""
    command = ["deepspeed", "--hostfile", two.hostfile(), TRAIN, *arguments(tmp_path / "run")]
    log = tmp_path / "log"
    said = wait_for_success(
        [two[0].start(*command, log=log, cwd=REPOSITORY, DS_ENV_FILE=deepspeed_env(tmp_path))], [log]
    )
    assert losses(tmp_path / "run") == expected
    for host in two:
        line = f"{host.name}: the name of host {host.name} is a loopback address to itself: gloo uses eth0"
        assert line in said, said
    two.wait_for_no_ranks(5)


def test_deepspeed_without_ssh(two: Hosts, expected: dict[int, float], tmp_path: Path) -> None:
    """`deepspeed --no_ssh --node_rank I`, started on each host by hand."""
    started, logs = [], [tmp_path / host.name for host in two]
    for at, host in enumerate(two):
        command = ["deepspeed", "--no_ssh", "--node_rank", str(at), "--master_addr", two[0].address]
        command += ["--master_port", "29510", "--hostfile", str(two.hostfile()), str(TRAIN)]
        started.append(host.start(*command, *arguments(tmp_path / "run"), log=logs[at], cwd=REPOSITORY))
    wait_for_success(started, logs)
    assert losses(tmp_path / "run") == expected


def test_torchrun(two: Hosts, expected: dict[int, float], tmp_path: Path) -> None:
    started, logs = [], [tmp_path / host.name for host in two]
    for at, host in enumerate(two):
        command = ["torchrun", "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(at)]
        command += ["--master_addr", two[0].address, "--master_port", "29511", str(TRAIN)]
        started.append(host.start(*command, *arguments(tmp_path / "run"), log=logs[at], cwd=REPOSITORY))
    wait_for_success(started, logs)
    assert losses(tmp_path / "run") == expected


def test_a_hostfile_that_is_missing_is_refused(two: Hosts, tmp_path: Path) -> None:
    """DeepSpeed alone would train on this host, with a warning."""
    command = ["deepspeed", "--hostfile", "no/such", TRAIN, *arguments(tmp_path / "run")]
    done = two[0].run(*command, timeout=100)
    assert done.returncode == 2, done.stdout
    assert "train: --hostfile = 'no/such': does not exist" in done.stdout
    assert not (tmp_path / "run").exists()
