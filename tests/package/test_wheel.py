"""An installed wheel works away from the repository: it trains, evaluates and plans a study.

The wheel is built from a copy of the tree and installed into a fresh environment that sees the dependencies
of this one but not its gaguide. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import gaguide
from gaguide.ports import free_port
from tests.support.patience import patience
from tests.support.ranks import REPOSITORY

pytestmark = pytest.mark.processes

SOURCES = (
    "gaguide",
    "launch",
    "ds_configs",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


def run(command: list[str], folder: Path, environment: dict[str, str], seconds: float = 200) -> str:
    """Standard output and error of a command that succeeds."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(seconds),
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel."""

    bin: Path
    """Its folder of programs."""
    folder: Path
    """An empty working directory outside the repository."""
    environment: dict[str, str]
    """Variables of its processes: nothing leads to the repository."""

    def __call__(self, program: str, *arguments: str) -> str:
        """Output of a program of this environment, run in `folder`."""
        return run([str(self.bin / program), *arguments], self.folder, self.environment)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    run([sys.executable, "-m", "pip", "wheel", *options, str(source)], folder, _environment())
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("elsewhere")
    venv = folder / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", str(venv)], folder, _environment())
    bin_folder = venv / "bin"
    paths = {"base": str(venv), "platbase": str(venv)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    # A .pth file adds a folder without reading the .pth files in it: this gaguide stays invisible.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(bin_folder / "python")
    options = ["--no-deps", "--no-index", "--ignore-installed", "--quiet"]
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", *options, str(wheel)],
        folder,
        _environment(),
    )
    _, _, script = (Path(sys.executable).parent / "deepspeed").read_text("utf-8").partition("\n")
    (bin_folder / "deepspeed").write_text(f"#!{python}\n{script}")
    (bin_folder / "deepspeed").chmod(0o755)
    work = folder / "work"
    work.mkdir()
    environment = _environment() | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    return Installed(bin_folder, work, environment)


def _environment() -> dict[str, str]:
    # What a test in this process has set for ranks of its own would be taken for this program's.
    others = ("PYTHON", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def trained(installed: Installed) -> tuple[Path, str]:
    """The embedded demo on two ranks under the deepspeed launcher, with few steps."""
    printed = installed(
        "deepspeed", "--num_accelerators", "2", "--master_port", str(free_port()),
        "--module", "gaguide.train", "--deepspeed", "zero2", "--output", "run",
        "--train.steps", "3", "--train.warmup_steps", "1",
        "--validation.every", "0", "--validation.blocks", "4",
    )  # fmt: skip
    return installed.folder / "run", printed


def test_the_wheel_holds_what_the_repository_ships(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {
        name.removeprefix("gaguide/_shipped/") for name in names if name.startswith("gaguide/_shipped/")
    }
    wanted = [*(REPOSITORY / "ds_configs").glob("*.json")]
    wanted += [path for kind in ("*.yaml", "*.sbatch") for path in (REPOSITORY / "launch").rglob(kind)]
    assert shipped == {str(path.relative_to(REPOSITORY)) for path in wanted}
    assert not [name for name in names if name.startswith(("tests/", "launch/", "benchmarks/"))]


def test_the_environment_has_the_wheels_gaguide(installed: Installed) -> None:
    code = "import gaguide, importlib.metadata as m; print(gaguide.__file__, m.version('gaguide'))"
    file, version = installed("python", "-c", code).split()
    assert Path(file).is_relative_to(installed.bin.parent)
    assert version == gaguide.__version__


def test_the_embedded_demo_trains_on_two_ranks(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert "3 steps" in printed
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 3
    assert (folder / "model" / "model.safetensors").stat().st_size > 0


def test_the_trained_model_is_evaluated(installed: Installed, trained: tuple[Path, str]) -> None:
    arguments = [
        "--model",
        "run/model",
        "--tasks",
        "synthetic-order",
        "--limit",
        "6",
        "--output",
        "evaluation",
    ]
    installed("gaguide", "evaluate", *arguments)
    results = json.loads((installed.folder / "evaluation" / "results.json").read_text())
    assert results["tasks"]["synthetic-order"]["count"] == 6
    assert (installed.folder / "evaluation" / "examples.parquet").stat().st_size > 0


def test_a_study_is_planned(installed: Installed) -> None:
    printed = installed("gaguide", "study", "run", "laptop", "--dry-run")
    assert "1-negation" in printed


def test_recipes_and_templates_are_found_by_name(installed: Installed) -> None:
    names = ["--deepspeed", "zero2", "--config", "gpt2-4-transition"]
    printed = installed("gaguide", "plan", *names, "--json")
    planned = json.loads(printed[printed.index("{") :])["request"]
    assert (planned["guided_heads"], planned["zero_stage"]) == (4, 2)
    script = installed("gaguide", "submit", "train", "--dry-run", *names)
    assert "#!/bin/bash" in script and "-m gaguide.train" in script
    assert str(REPOSITORY) not in script
