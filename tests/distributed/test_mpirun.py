"""The exit code of a real mpirun (Open MPI's wheel) whose ranks agree over MPI on where they meet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.patience import patience
from tests.support.ranks import EVALUATE, TRAIN, rank_environment

MPIRUN = Path(sys.executable).with_name("mpirun")
LEAVE = Path(__file__).with_name("leave_script.py")
pytestmark = pytest.mark.processes


def _mpirun(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mpi4py")
    if not MPIRUN.exists():
        pytest.skip("Open MPI's wheel is not installed")
    environment = rank_environment() | variables
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        del environment[name]
    start = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable]
    return subprocess.run(
        [*map(str, [*start, *words])], env=environment, capture_output=True, text=True, timeout=patience(300)
    )


@pytest.mark.parametrize(
    ("end", "is_code"),
    [("together", lambda code: code == 0), ("3", lambda code: code == 3),
     ("kill", lambda code: code != 0), ("raise", lambda code: code != 0)],
)  # fmt: skip
def test_code_of_the_ranks(end: str, is_code: Callable[[int], bool]) -> None:
    ended = _mpirun(LEAVE, end)
    assert is_code(ended.returncode), ended.stderr


def test_ranks_left_in_the_environment_are_refused_without_a_traceback(tmp_path: Path) -> None:
    words = ["--model", tmp_path, "--tasks", "synthetic-order", "--output", tmp_path]
    ended = _mpirun(EVALUATE, *words, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    assert ended.returncode == 2 and "unset RANK WORLD_SIZE LOCAL_RANK" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_an_evaluation_that_succeeds_ends_with_0(tmp_path: Path) -> None:
    from tests.evaluate.conftest import save_gpt2

    words = ["--model", save_gpt2(tmp_path / "model"), "--tasks", "synthetic-order", "--output", tmp_path]
    ended = _mpirun(EVALUATE, *words, "--limit", "4")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((tmp_path / "results.json").read_text())["world_size"] == 2
    ended = _mpirun(EVALUATE, *words, "--limit", "0")
    assert ended.returncode == 2, ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_training_that_succeeds_ends_with_0(embedded_shards: Path, tmp_path: Path) -> None:
    words = ["--deepspeed", "zero1", "--data.shards", embedded_shards, "--checkpoint.every", "2"]
    words += ["--train.steps", "2", "--train.global_batch", "4", "--validation.every", "0"]
    words += ["--data.block_length", "32", "--output", tmp_path / "run"]
    ended = _mpirun(TRAIN, *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "run" / "model" / "config.json").is_file()
