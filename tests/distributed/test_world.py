"""The rank of a process from each launcher's variables, reports of wrong ones, and the exit of a rank."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gaguide.distributed import World, start
from gaguide.errors import Fault, UserError


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
    ],
)
def test_ranks_of_every_launcher(environ: dict[str, str], expected: tuple[int, int, int]) -> None:
    world = World.from_environment(environ)
    assert (world.rank, world.size, world.local_rank) == expected


def test_a_variable_that_is_not_a_number_is_named() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE = 'two'"):
        World.from_environment({"RANK": "0", "WORLD_SIZE": "two"})


def test_several_ranks_without_an_address_get_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="MASTER_ADDR: must be set for 2 ranks"):
        start(World(0, 2))


def test_faults_are_listed_once_with_remedies() -> None:
    first, second = Fault("a.b", "is wrong", "correct it", [1]), Fault("c", "too", "correct that")
    assert str(UserError([first, second, first])).count("correct it") == 1
    assert str(UserError(second)) == "c: too\n    → correct that"


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
