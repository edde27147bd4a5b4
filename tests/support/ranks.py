"""Real ranks: start a script under the DeepSpeed launcher on this machine, gloo on CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = REPOSITORY / "launch" / "train.py"
EVALUATE = REPOSITORY / "launch" / "evaluate.py"
DS_CONFIGS = REPOSITORY / "ds_configs"


def launch_command(script: Path, arguments: Sequence[str], ranks: int) -> list[str]:
    """The command line that starts `script` on `ranks` local ranks, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    deepspeed = Path(sys.executable).parent / "deepspeed"
    return [
        *(str(deepspeed), "--num_accelerators", str(ranks), "--master_port", str(port)),
        *(str(script), *arguments),
    ]


def rank_environment() -> dict[str, str]:
    """One thread a rank, this interpreter's folder first on the path, this checkout importable."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    mine = {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    return os.environ | mine


def run_ranks(
    script: Path, arguments: Sequence[str] = (), ranks: int = 2, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run to the end; stdout and stderr are captured together, the exit code is the launcher's."""
    return subprocess.run(
        launch_command(script, arguments, ranks),
        env=rank_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
