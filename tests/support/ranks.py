"""Starts scripts under real launchers on this machine, with gloo on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gaguide.ports import free_port
from tests.support.patience import patience

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = REPOSITORY / "launch" / "train.py"
EVALUATE = REPOSITORY / "launch" / "evaluate.py"
DS_CONFIGS = REPOSITORY / "ds_configs"


def launch_command(
    script: Path, arguments: Sequence[str], ranks: int, launcher: str = "deepspeed"
) -> list[str]:
    """The command line for local ranks: by deepspeed, torchrun or mpirun, or one process by python."""
    port, local = str(free_port()), Path(sys.executable).parent
    starts = {
        "python": [sys.executable],
        "deepspeed": [str(local / "deepspeed"), "--num_accelerators", str(ranks), "--master_port", port],
        "torchrun": [str(local / "torchrun"), "--nproc_per_node", str(ranks), "--master_port", port],
        "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), sys.executable],
    }
    return [*starts[launcher], str(script), *arguments]


_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def rank_environment(threads: int = 1) -> dict[str, str]:
    """Threads a rank, this interpreter's folder first on the path, this checkout importable, no hub.

    MASTER_ADDR and MASTER_PORT are for launchers that set none of their own. A rank that a test in this
    process has set is left out: under mpirun it would be that of every rank.
    """
    mine = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return {name: value for name, value in os.environ.items() if name not in _OF_RANKS} | mine


def run_ranks(
    script: Path,
    arguments: Sequence[str] = (),
    ranks: int = 2,
    timeout: float = 300,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run to the end; stdout and stderr are captured together, the exit code is the launcher's."""
    return subprocess.run(
        launch_command(script, arguments, ranks),
        env=rank_environment() | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(timeout),
    )
