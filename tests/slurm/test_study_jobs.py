"""How many jobs of a study can run at a time."""

from __future__ import annotations

import random

import pytest

from gaguide.study.slurm import _dependency


def test_a_job_waits_for_its_base_and_for_a_place() -> None:
    assert _dependency(None, ["1", "2"], None) == []
    assert _dependency(None, ["1"], 2) == []
    assert _dependency(None, ["1", "2", "3"], 2) == ["--dependency=afterany:2"]
    assert _dependency("1", ["1"], None) == ["--dependency=afterok:1", "--kill-on-invalid-dep=yes"]
    both = ["--dependency=afterok:1,afterany:3", "--kill-on-invalid-dep=yes"]
    assert _dependency("1", ["1", "2", "3", "4"], 2) == both


@pytest.mark.parametrize("most", [1, 2, 3])
def test_never_more_jobs_run_than_allowed(most: int) -> None:
    """Jobs that start as soon as they may and end in any order."""
    chance = random.Random(most)
    names = [str(number) for number in range(12)]
    awaited = {
        name: [word.split(":")[1] for option in _dependency(None, names[:at], most) for word in [option]]
        for at, name in enumerate(names)
    }
    ended: set[str] = set()
    while len(ended) < len(names):
        running = [name for name in names if name not in ended and ended.issuperset(awaited[name])]
        assert 1 <= len(running) <= most
        ended.add(chance.choice(running))
