"""mpirun over two hosts, Open MPI and MPICH: training, evaluation and data with the results of one host."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gaguide.data import read_manifest
from tests.cluster.conftest import arguments, losses
from tests.cluster.hosts import Hosts, need
from tests.support.patience import patience
from tests.support.ranks import EVALUATE, TRAIN, run_ranks

pytestmark = pytest.mark.cluster


class Mpi:
    """An MPI library over two hosts, with a Python that has mpi4py for it."""

    def __init__(self, name: str, python: Path, made: Hosts) -> None:
        self.name, self.python, self.hosts = name, python, made

    def run(self, *words: str | Path, timeout: float = 200) -> str:
        """The output of a command with one rank on each host."""
        if self.name == "openmpi":
            start = ["mpirun", "--allow-run-as-root", "-n", "2", "-H", "node0:1,node1:1"]
            start += ["--mca", "btl_tcp_if_include", "eth0", "--mca", "oob_tcp_if_include", "eth0"]
            for variable in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "DS_ACCELERATOR", "HF_HUB_OFFLINE"):
                start += ["-x", variable]
        else:
            start = [str(self.python.parent / "mpiexec"), "-n", "2", "-ppn", "1"]
            start += ["-hosts", "node0,node1", "-iface", "eth0"]
        # UCX knows the two hosts for one machine by its boot id, and would share memory.
        more = {"UCX_TLS": "tcp,self"} if self.name == "mpich" else {}
        done = self.hosts[0].run(*start, self.python, *words, timeout=timeout, **more)
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module", params=["openmpi", "mpich"])
def mpi(request: pytest.FixtureRequest, two: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Mpi:
    """Debian's Open MPI; MPICH as its wheel from PyPI. mpi4py finds whichever its environment has."""
    packages = ["mpi4py>=4.1"]
    if request.param == "openmpi":
        need({"mpirun": "openmpi-bin"})
    else:
        packages.append("mpich")
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=patience(60))
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--force-reinstall",
        *packages,
    ]
    done = subprocess.run(install, capture_output=True, text=True, timeout=patience(200))
    if done.returncode:
        pytest.skip(f"no {', '.join(packages)} to be had: {done.stderr.strip().splitlines()[-1]}")
    return Mpi(request.param, folder / "bin" / "python", two)


@pytest.fixture(scope="module")
def trained(mpi: Mpi, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over both hosts; the ranks agree over MPI on where they meet."""
    output = tmp_path_factory.mktemp("trained") / "run"
    mpi.run(TRAIN, *arguments(output))
    return output


def test_training_gives_the_losses_of_one_host(trained: Path, expected: dict[int, float]) -> None:
    assert losses(trained) == expected


def test_evaluation_counts_each_example_once(mpi: Mpi, trained: Path, tmp_path: Path) -> None:
    words = ["--model", str(trained / "model"), "--tasks", "demo", "--limit", "40", "--output"]
    mpi.run(EVALUATE, *words, tmp_path / "two")
    assert run_ranks(EVALUATE, [*words, str(tmp_path / "one")], 1).returncode == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["tasks"] == two["tasks"]


def test_data_has_the_bytes_of_one_process(mpi: Mpi, trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.jsonl"
    source.write_text(
        "".join(json.dumps({"text": f"not {at}, but {at * at}. " * 20}) + "\n" for at in range(300))
    )
    build = ["-c", "from gaguide.cli import main; main()", "data", "build", "--source", source]
    build += ["--tokenizer", trained / "model", "--shard-tokens", "8000", "--output"]
    assert "300 documents" in mpi.run(*build, tmp_path / "two")
    subprocess.run(
        [sys.executable, *build, str(tmp_path / "one"), "--workers", "1"], check=True, timeout=patience(100)
    )
    assert read_manifest(tmp_path / "two") == read_manifest(tmp_path / "one")
