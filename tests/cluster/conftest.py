"""Two hosts for the tests of a module, and the run that all launchers repeat, on one host for comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gaguide.log import read_metrics
from tests.cluster.hosts import Hosts, hosts
from tests.support.ranks import DS_CONFIGS, TRAIN, run_ranks

SETTINGS = (
    "--train.steps", "6", "--train.log_every", "1", "--validation.every", "0", "--validation.blocks", "4",
    "--checkpoint.every", "3",
)  # fmt: skip


def arguments(output: Path, *more: str) -> list[str]:
    """launch/train.py's arguments for a few steps of the embedded run."""
    return ["--deepspeed", str(DS_CONFIGS / "zero2.json"), *SETTINGS, "--output", str(output), *more]


def losses(output: Path) -> dict[int, float]:
    """Step → loss, from a run's records."""
    return {record["step"]: record["loss"] for record in read_metrics(output / "metrics.jsonl")}


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the run on one host with two ranks."""
    output = tmp_path_factory.mktemp("one-host") / "run"
    done = run_ranks(TRAIN, arguments(output), 2)
    assert done.returncode == 0, done.stdout
    return losses(output)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts that all tests of a module share."""
    with hosts(2, tmp_path_factory.mktemp("hosts")) as made:
        yield made
