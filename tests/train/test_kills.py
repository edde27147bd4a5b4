"""Repeated kill -9 at random moments: no step beyond the last checkpoint is lost."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest

from tests.support.patience import patience
from tests.support.ranks import TRAIN
from tests.train.test_faults import CURVES, arguments, job, newest_checkpoint, read_metrics, steps_done

pytestmark = pytest.mark.processes

TRIALS = 50
STEPS = 1500


def settings(shards: Path, output: Path) -> list[str]:
    return arguments(
        shards, output, **{"train.steps": str(STEPS), "checkpoint.every": "5", "validation.blocks": "2"}
    )


def saving(output: Path) -> bool:
    """Whether a checkpoint is being written; valid once a run has removed the leftovers of the one before."""
    return any((output / "checkpoints").glob(".saving-*"))


@pytest.mark.stress
def test_fifty_kills(embedded_shards: Path, tmp_path: Path) -> None:
    """One rank or both, at random moments: soon after the start, inside a save and after one, in turn."""
    reference, output = tmp_path / "reference", tmp_path / "killed"
    with job(TRAIN, settings(embedded_shards, reference)) as running:
        code, printed = running.wait(600)
        assert code == 0, printed
    random_moment = random.Random(0)
    inside = 0
    for trial in range(TRIALS):
        kept = newest_checkpoint(output)
        with job(TRAIN, settings(embedded_shards, output)) as running:
            begun = "resuming after step" if kept else "step "
            running.wait_for(lambda begun=begun: begun in running.log.read_text())
            assert not kept or f"resuming after step {kept} of {STEPS}" in running.log.read_text(), trial
            if trial % 3 == 1:
                running.wait_for(lambda: saving(output))
            elif trial % 3 == 2:
                running.wait_for(lambda kept=kept: newest_checkpoint(output) > kept)
            time.sleep(random_moment.uniform(0, 0.02 if trial % 3 == 1 else 0.3))
            ranks = running.ranks()
            inside += saving(output)
            victims = [random_moment.choice([0, 1])] if random_moment.random() < 0.7 else [0, 1]
            for victim in victims:
                if victim in ranks:
                    ranks[victim].kill()
            running.process.wait(patience(120))
            _, alive = psutil.wait_procs(ranks.values(), timeout=patience(60))
            assert not alive, f"trial {trial}: ranks live on after the launcher has ended"
        newest = newest_checkpoint(output)
        assert newest >= kept, f"trial {trial}: checkpoint {kept} is lost, the newest is {newest}"
        assert steps_done(output) - newest <= 6, f"trial {trial}: more than a checkpoint's steps are lost"
        if newest >= STEPS - 40:
            break
    assert inside >= TRIALS // 10, "no trial hit a save"
    with job(TRAIN, settings(embedded_shards, output)) as running:
        code, printed = running.wait(600)
        assert code == 0, printed
    assert not list((output / "checkpoints").glob("damaged-*"))
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (output, reference))
    assert [record["step"] for record in ours] == list(range(1, STEPS + 1))
    for mine, other in zip(ours, theirs, strict=True):
        assert all(mine[curve] == other[curve] for curve in CURVES), (mine, other)
