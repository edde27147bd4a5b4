"""benchmarks/gpu.sh as far as it shows without a GPU: its syntax, and that what it starts exists."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.ranks import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "gpu.sh"


@pytest.mark.processes
def test_the_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_it_names_files_and_parts_that_exist() -> None:
    text = SCRIPT.read_text("utf-8")
    files = set(re.findall(r"\b(?:tests|benchmarks)/[\w/]+\.(?:py|md)\b", text))
    assert len(files) >= 6
    assert not [name for name in files if not (REPOSITORY / name).is_file()]
    parts = set(re.findall(r"^ *part ([\w-]+)", text, re.M))
    status = (REPOSITORY / "docs" / "gpu-status.md").read_text("utf-8")
    named = [
        part
        for row in re.findall(r"gpu\.sh`, parts? (.*?) \|", status)
        for part in re.findall(r"`([\w-]+)`", row)
    ]
    assert named and set(named) <= parts


def test_what_only_a_gpu_can_measure_comes_first_and_fits_ten_minutes() -> None:
    limits = re.findall(r"^ *part ([\w-]+) (\d+) ", SCRIPT.read_text("utf-8"), re.M)
    names = [name for name, _ in limits]
    measured = {
        "kernels",
        "guidance",
        "host-guidance",
        "host",
        "train-eager",
        "train-compiled",
        "train-ranks",
    }
    assert set(names[: len(measured)]) == measured
    assert sum(int(limit) for name, limit in limits if name in measured) <= 600
