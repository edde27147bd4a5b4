"""Runs go on at another ZeRO stage and on another number of ranks, with the losses they would have had."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from gaguide.log import read_metrics
from tests.support.ranks import run_ranks

SCRIPT = Path(__file__).parent / "resize_script.py"
STAGES = {"fp32": "0123", "bf16": "123", "fp16": "123"}


def go_on(shards: Path, folder: Path, ranks: int, names: list[str]) -> str:
    done = run_ranks(SCRIPT, [str(shards), str(folder), ",".join(names)], ranks, timeout=1500)
    assert done.returncode == 0, done.stdout
    return done.stdout


def check(folder: Path, source: str, target: str, ranks: int) -> None:
    """Steps 4 to 6 after the change have the losses of the run that nothing changed.

    The first of them tells the weights, the later ones moments, step count and both weight decays.
    """
    ours = read_metrics(folder / f"{source}-to-{target}-on-{ranks}" / "metrics.jsonl")
    theirs = read_metrics(folder / source / "metrics.jsonl")
    assert [record["step"] for record in ours] == [1, 2, 3, 4, 5, 6]
    assert ours[:3] == theirs[:3]
    half = not target.startswith("fp32")
    for mine, other in zip(ours[3:], theirs[3:], strict=True):
        for curve in ("loss", "lm_loss", "grad_norm"):
            close = pytest.approx(other[curve], rel=1e-2 if half else 2e-5)
            assert mine[curve] == close, (source, target, ranks, mine["step"], curve)


def test_stages_turn_into_each_other(embedded_shards: Path, tmp_path: Path) -> None:
    """Two ranks; a change of ranks is in test_disk_full.py, all pairs are in the stress suite."""
    pairs = [("fp32-2-on-2", "fp32-3"), ("fp32-2-on-2", "fp32-0"), ("bf16-3-on-2", "bf16-1")]
    names = ["fp32-2", "bf16-3", *(f"{source}>{target}" for source, target in pairs)]
    printed = go_on(embedded_shards, tmp_path, 2, names)
    assert printed.count("its state is dealt out anew to 2 at stage") == len(pairs)
    for source, target in pairs:
        check(tmp_path, source, target, 2)


@pytest.mark.stress
def test_every_stage_and_number_of_ranks_turns_into_every_other(
    embedded_shards: Path, tmp_path: Path
) -> None:
    """Stages 0 to 3 in fp32 and 1 to 3 in bf16 and fp16, from one and two ranks to one, two and four."""
    for ranks in (1, 2):
        whole = [f"{precision}-{stage}" for precision, stages in STAGES.items() for stage in stages]
        go_on(embedded_shards, tmp_path, ranks, whole)
    for ranks in (1, 2, 4):
        pairs = [
            (f"{precision}-{a}-on-{before}", f"{precision}-{b}")
            for precision, stages in STAGES.items()
            for before, a, b in itertools.product((1, 2), stages, stages)
            if (before, a) != (ranks, b) and (ranks < 4 or precision != "fp16")
        ]
        go_on(embedded_shards, tmp_path, ranks, [f"{source}>{target}" for source, target in pairs])
        for source, target in pairs:
            check(tmp_path, source, target, ranks)
