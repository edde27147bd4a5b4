"""The rank of a process from each launcher's variables, reports of wrong ones, and the exit of a rank."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gaguide.distributed import World, start
from gaguide.distributed.world import gpu_index, shared_gpu
from gaguide.errors import Fault, UserError
from tests.support.ranks import DS_CONFIGS, rank_environment, run_ranks

# Of the shell of `salloc -n 4` under Slurm 22.05 with use_interactive_step: a step of one task.
INTERACTIVE_SHELL = {
    "SLURM_STEP_ID": "4294967290",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "1",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        (
            {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            (2, 4, 0),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}, (1, 2, 1)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2", "SLURM_STEP_ID": "0"}, (5, 6, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6"}, (0, 1, 0)),  # a batch shell is not a task of a step
        (INTERACTIVE_SHELL, (0, 1, 0)),
        (
            INTERACTIVE_SHELL | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"},
            (3, 4, 0),
        ),
    ],
)
def test_ranks_of_every_launcher(environ: dict[str, str], expected: tuple[int, int, int]) -> None:
    world = World.from_environment(environ)
    assert (world.rank, world.size, world.local_rank) == expected


def test_a_variable_that_is_not_a_number_is_named() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE = 'two'"):
        World.from_environment({"RANK": "0", "WORLD_SIZE": "two"})


_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
_SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize("launcher", [_MPI, _SRUN, {"PMI_RANK": "1", "PMI_SIZE": "2"}])
def test_a_rank_left_in_the_environment_is_refused(launcher: dict[str, str]) -> None:
    left = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with pytest.raises(UserError, match="says rank 0 of 1, but the launcher says rank 1 of 2"):
        World.from_environment(left | launcher)
    agreed = World.from_environment({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"} | launcher)
    assert (agreed.rank, agreed.size) == (1, 2)
    below = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}  # two ranks on each of two hosts
    for own in ({"TORCHELASTIC_RUN_ID": "x"}, {"CROSS_SIZE": "2"}):
        assert World.from_environment(below | launcher | own).size == 4
    assert World.from_environment(left | INTERACTIVE_SHELL).size == 1


def test_several_ranks_without_an_address_get_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="MASTER_ADDR: must be set for 2 ranks"):
        start(World(0, 2))


def test_faults_are_listed_once_with_remedies() -> None:
    first, second = Fault("a.b", "is wrong", "correct it", [1]), Fault("c", "too", "correct that")
    assert str(UserError([first, second, first])).count("correct it") == 1
    assert str(UserError(second)) == "c: too\n    → correct that"


def test_a_message_does_not_contain_a_huge_value() -> None:
    text = "x" * 100_000
    for value in (text, [text] * 1000, {f"k{at}": [text] for at in range(1000)}, (text.encode(),), 10**5000):
        assert 20 < len(str(Fault("a", "is wrong", "correct it", value))) < 1500
    assert "(100,000 characters)" in str(Fault("a", "is wrong", "correct it", text))
    assert len(str(Fault(text, text, text))) < 10_000
    listed = ["name"] * 40
    assert repr(listed) in str(Fault("a", "is wrong", "correct it", listed))
    many = str(UserError(Fault(f"field {at}", "is wrong", "correct it") for at in range(600)))
    assert many.startswith("600 problems") and many.endswith("and 100 more; correct these first")


_LEAVES = """
import atexit, sys
from gaguide.distributed import leave

class Last:
    def __del__(self):
        print("finalized")

last = Last()
atexit.register(print, "registered")
print("output", end=" ")
print("error", end=" ", file=sys.stderr)
leave(75)
"""


@pytest.mark.processes
def test_leave_flushes_output_and_skips_finalizing_the_interpreter() -> None:
    ended = subprocess.run([sys.executable, "-c", _LEAVES], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (75, "output registered\n", "error ")


_STARTS = """
import sys
from gaguide.distributed import World, start
from gaguide.errors import UserError
try:
    start(World(0, 2))
except UserError as error:
    sys.exit(f"{error}")
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ({"CROSS_SIZE": "1"}, "--master_port = '{}': is in use on this host.*deepspeed --master_port"),
        ({}, "MASTER_PORT .--master_port. = '{}': is in use on this host.*export MASTER_PORT="),
    ],
)
def test_a_port_in_use_is_reported_with_a_free_one(launcher: dict[str, str], message: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environ = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | launcher
        ended = subprocess.run([sys.executable, "-c", _STARTS], env=environ, capture_output=True, text=True)
    assert ended.returncode == 1 and re.search(message.format(port), ended.stderr, re.DOTALL), ended.stderr


@pytest.mark.parametrize(
    ("local_rank", "visible", "index"),
    [
        (0, 4, 0),
        (3, 4, 3),
        (3, 1, 0),  # srun --gpus-per-task: each rank sees its own GPU only
        (2, 2, 2),  # a rank too many: `start` refuses it
    ],
)
def test_the_gpu_of_a_rank(local_rank: int, visible: int, index: int) -> None:
    assert gpu_index(local_rank, visible) == index


def test_two_ranks_on_one_gpu_are_found() -> None:
    assert shared_gpu(["a of host x", "b of host x", "a of host y"]) is None
    assert shared_gpu(["a", "b", "c", "b"]) == (1, 3)


@pytest.mark.processes
def test_ranks_share_a_clock_where_their_hosts_do_not() -> None:
    done = run_ranks(Path(__file__).with_name("clock_script.py"), ranks=2)
    found = re.search(r"apart (\S+) from here (\S+)", done.stdout)
    assert found, done.stdout
    assert max(map(float, found.groups())) < 600, "an hour lies between the ranks' own clocks"


@pytest.mark.processes
def test_a_second_run_at_the_port_of_a_first_ends_with_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = ["deepspeed", "--num_accelerators", "1", "--master_port", port, "--module", "gaguide.train"]
        ended = subprocess.run(
            [*command, "--deepspeed", str(DS_CONFIGS / "zero2.json")],
            env=rank_environment(),
            capture_output=True,
            text=True,
        )
    said = ended.stdout + ended.stderr
    assert f"train: --master_port = '{port}': is in use on this host" in said and ended.returncode == 2, said
