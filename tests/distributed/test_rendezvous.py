"""Where ranks meet without MASTER_ADDR, which interface gloo uses, and the launchers above a rank."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from gaguide.distributed.launcher import check_hostfile, hostfile_of, runner_over_ssh
from gaguide.distributed.network import gloo_interface
from gaguide.distributed.rendezvous import expand_hosts, rendezvous
from gaguide.distributed.world import World
from gaguide.errors import UserError
from tests.support.patience import patience
from tests.support.ranks import REPOSITORY

SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "1234",
    "SLURM_PROCID": "1",
    "SLURM_JOB_NODELIST": "n[07-08,10],x",
}


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        ("n0", ["n0"]),
        ("n[07-09,12],login", ["n07", "n08", "n09", "n12", "login"]),
        ("r[1-2]c[0-1]", ["r1c0", "r1c1", "r2c0", "r2c1"]),
        ("gpu-a.site,gpu-b.site", ["gpu-a.site", "gpu-b.site"]),
        ("", []),
    ],
)
def test_a_compressed_list_of_hosts_is_expanded(names: str, hosts: list[str]) -> None:
    assert expand_hosts(names) == hosts


def test_srun_meets_on_the_steps_first_host() -> None:
    met = rendezvous(SLURM, 1, 6)
    assert met["MASTER_ADDR"] == "n07" and 15_000 <= int(met["MASTER_PORT"]) < 32_000
    assert rendezvous(SLURM | {"SLURM_PROCID": "5"}, 5, 6) == met, "the same on all ranks"
    assert rendezvous(SLURM | {"SLURM_STEP_NODELIST": "n[08,10]"}, 1, 6)["MASTER_ADDR"] == "n08"
    assert rendezvous(SLURM | {"SLURM_STEP_ID": "1"}, 1, 6)["MASTER_PORT"] != met["MASTER_PORT"]
    assert rendezvous(SLURM | {"MASTER_ADDR": "ib0"}, 1, 6) == met | {"MASTER_ADDR": "ib0"}, (
        "a given value stays"
    )


def test_ranks_in_an_arbitrary_order_meet_on_the_host_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    arbitrary = SLURM | {
        "SLURM_ARBITRARY_NODELIST": "n[07-08,10],x",
        "SLURM_STEP_NODELIST": "nowhere,localhost",
    }
    met = rendezvous(arbitrary | {"SLURM_PROCID": "0", "SLURM_NODEID": "1"}, 0, 6)
    assert met["MASTER_ADDR"] == "localhost", "rank 0 knows its own host"
    with socket.socket() as listening:  # as rank 0 does
        listening.bind(("127.0.0.1", int(met["MASTER_PORT"])))
        listening.listen()
        assert rendezvous(arbitrary, 1, 6) == met
    monkeypatch.setattr("gaguide.distributed.rendezvous._SEARCH_SECONDS", 0.0)
    with pytest.raises(UserError, match="rank 0 listens on none of them"):
        rendezvous(arbitrary, 1, 6)


def test_srun_with_pmi_gives_the_local_rank_as_slurm_localid() -> None:
    world = World.from_environment({"PMI_RANK": "3", "PMI_SIZE": "4", "SLURM_LOCALID": "1"})
    assert (world.rank, world.size, world.local_rank) == (3, 4, 1)


def test_an_invalid_list_of_hosts_is_reported() -> None:
    with pytest.raises(UserError, match=r"SLURM_JOB_NODELIST = 'n\[a-b\]'"):
        rendezvous(SLURM | {"SLURM_JOB_NODELIST": "n[a-b]"}, 1, 2)


@pytest.fixture()
def name_of_this_host(monkeypatch: pytest.MonkeyPatch):
    """Function that makes this host's name resolve to an address; other names resolve as before."""
    resolve = socket.getaddrinfo

    def set_to(address: str) -> None:
        def fake(name, *rest, **kinds):
            return resolve(address if name == socket.gethostname() else name, *rest, **kinds)

        monkeypatch.setattr(socket, "getaddrinfo", fake)

    return set_to


def _addresses() -> dict[str, str]:
    return {
        name: entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    }


def test_an_interface_is_set_for_gloo_only_where_it_would_use_loopback(name_of_this_host) -> None:
    beyond = {name: address for name, address in _addresses().items() if not address.startswith("127.")}
    if not beyond:
        pytest.skip("this machine has no interface but loopback")
    name, address = next(iter(beyond.items()))
    name_of_this_host("127.0.1.1")
    assert gloo_interface({}, [address]) == name
    assert gloo_interface({}, [socket.gethostname()]) in beyond, "the master itself, by its own name"
    assert gloo_interface({}, ["127.0.0.1"]) is None, "one host"
    assert gloo_interface({"GLOO_SOCKET_IFNAME": "ib0"}, [address]) is None, "the person chose"
    name_of_this_host(address)
    assert gloo_interface({}, [address]) is None


@pytest.mark.parametrize(
    ("command", "hostfile"),
    [
        ("python /v/bin/deepspeed --hostfile hosts launch/train.py --x 1", "hosts"),
        ("/v/bin/deepspeed --master_port 1 -H=hosts launch/train.py", "hosts"),
        ("python /v/bin/deepspeed launch/train.py --hostfile other", None),
        ("python -u -m deepspeed.launcher.launch --hostfile x launch/train.py", None),
        ("deepspeed --module --hostfile hosts gaguide.train --x 1", "hosts"),
        ("deepspeed --module gaguide.train --hostfile other", None),
        ("vim --hostfile x", None),
    ],
)
def test_the_hostfile_of_a_command_line(command: str, hostfile: str | None) -> None:
    assert hostfile_of(command.split()) == hostfile


@pytest.mark.processes
def test_a_rank_refuses_a_deepspeed_command_whose_hostfile_is_missing(tmp_path) -> None:
    """In a real process tree: a script named deepspeed starts the rank."""
    check_hostfile()
    script = tmp_path / "deepspeed"
    module = (
        REPOSITORY / "gaguide" / "distributed" / "launcher.py"
    )  # alone: without the seconds that torch takes
    rank = f"import runpy; runpy.run_path({str(module)!r})['check_hostfile']()"
    script.write_text(
        f"import subprocess, sys\nrank = {rank!r}\n"
        "sys.exit(subprocess.run([sys.executable, '-c', rank]).returncode)\n"
    )
    (tmp_path / "hosts").write_text("a slots=1\n")
    started = {
        name: subprocess.Popen(
            [sys.executable, str(script), "--hostfile", name, "train.py"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("hosts", "hots")
    }
    errors = {name: process.communicate(timeout=patience(60))[1] for name, process in started.items()}
    assert started["hosts"].returncode == 0, errors
    assert started["hots"].returncode and "--hostfile = 'hots': does not exist" in errors["hots"]


@pytest.mark.processes
def test_the_launcher_above_pdsh_is_found() -> None:
    assert runner_over_ssh("29999") == {}
    with subprocess.Popen(
        ["pdsh", "-c", "read line", "x", "--master_port=29998"], executable="/bin/sh", stdin=subprocess.PIPE
    ) as process:
        found = runner_over_ssh("29998")
        process.kill()
    me = psutil.Process()
    assert found.keys() == {process.pid, me.pid} and found[me.pid] == me.create_time()


@pytest.mark.processes
def test_the_death_of_a_launcher_is_noticed(tmp_path: Path) -> None:
    """One that dies later, and one that died while Python was still starting."""
    module = REPOSITORY / "gaguide" / "distributed" / "launcher.py"
    look = f"import runpy; mine = runpy.run_path({str(module)!r})['Launchers']()"
    rank = f"{look}; print(mine.gone(), flush=True); input(); print(mine.gone(), flush=True)"
    script = tmp_path / "deepspeed"
    script.write_text(
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {rank!r}])\nsys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], **pipes) as launcher:
        overdue = threading.Timer(patience(60), launcher.kill)
        overdue.start()
        assert launcher.stdout.readline() == "False\n"
        launcher.kill()
        launcher.wait()
        launcher.stdin.write("\n")
        launcher.stdin.flush()
        assert launcher.stdout.readline() == "True\n"
        overdue.cancel()
    for variables, expected in (({}, "False"), ({"CROSS_SIZE": "1"}, "True")):
        command = [sys.executable, "-c", f"{look}; print(mine.gone())"]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
