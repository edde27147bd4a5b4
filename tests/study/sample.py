"""A small study's folder with made-up numbers in the real files, for tests of its readers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from gaguide.study.analysis_records import (
    Change,
    Gain,
    HeadAttention,
    HeadKnockOut,
    HeadVerdict,
    LexiconShare,
    LossCost,
)
from gaguide.study.record_files import write_study, write_tables
from gaguide.study.records import HELD_OUT, CellRecord, Comparison, Mean, Result, ScalingVerdict
from gaguide.study.study_records import StudyRecords

SIZES = {"pico": 92_000, "nano": 230_000, "micro": 530_000, "tiny": 1_060_000}
EXPERIMENTS = ("original", "finetuned", "1-negation", "4-transition")
TASKS = {"memo-trap": ("classification", "acc", 60), "synthetic-contrast": ("sequence_prob", "loss", 20)}
SEEDS = (0, 1, 2)
LAYERS = 2


def sample_study(folder: Path, prompt: str = "The value is not a number, but") -> Path:
    """Write the study; `prompt` is that of every example; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    cells = [_cell(size, experiment, seed) for size in SIZES for experiment in EXPERIMENTS for seed in SEEDS]
    results = [row for cell in cells for row in _results(cell, rng)]
    guided = [(size, experiment) for size in SIZES for experiment in EXPERIMENTS[1:]]
    records = StudyRecords(
        "sample",
        {"name": "sample", "tasks": list(TASKS), "seeds": list(SEEDS)},
        {"collected": "2026-11-24T12:00:00+00:00", "versions": {"gaguide": "0.1.0"}, "machine": "2 cores"},
        tuple(cells),
        tuple(results),
        tuple(_means(results)),
        tuple(row for size, experiment in guided for row in _comparisons(size, experiment, rng)),
        tuple(_verdict(experiment, task, rng) for experiment in EXPERIMENTS for task in TASKS),
        tuple(
            LexiconShare(task, lexicon, "pieces", 60, hits, hits / 60, hits / 60 - 0.01, hits / 60 + 0.01)
            for task in TASKS
            for lexicon, hits in (("contrast", 42), ("order", 9))
        ),
        tuple(
            Gain(size, experiment, "finetuned", task, TASKS[task][1], "high", words, ["contrast"], 3, 30,
                 0.01, -0.02, 0.04)
            for size, experiment in guided if experiment != "finetuned"
            for task in TASKS for words in ("with", "without")
        ),
        tuple(
            HeadAttention(cell.size, cell.experiment, cell.experiment != "finetuned", layer, head, "contrast",
                          cell.id, cell.seed, 0.02, 0.9 if cell.experiment != "finetuned" else 0.03)
            for cell in cells if cell.role == "tuned" for layer in range(LAYERS) for head in range(1)
        ),
        tuple(
            LossCost(size, experiment, "finetuned", 3, 4.81, 4.80, 0.01, 0.002, 0.004, 0.016)
            for size, experiment in guided if experiment != "finetuned"
        ),
        tuple(
            Change(size, experiment, "finetuned", "memo-trap", str(at), prompt, ["contrast"], 3, at % 4,
                   (at + 1) % 4, rng.gauss(0, 0.1))
            for size, experiment in guided if experiment != "finetuned" for at in range(8)
        ),
        (),
        tuple(
            HeadKnockOut(cell.size, cell.experiment, cell.experiment != "finetuned", layer, 0, "contrast",
                         "mean", 0.02, 0.9, 0.001, 0.01, -0.01, 0.03, 0.2, 0.0, 0.002, "moved", "not used",
                         cell.id, cell.seed)
            for cell in cells if cell.role == "tuned" for layer in range(LAYERS)
        ),
        tuple(
            HeadVerdict(size, experiment, experiment != "finetuned", layer, 0, "contrast", "mean",
                        0.02, 0.9, 0.001, 0.01, -0.01, 0.03, 0.2, 0.0, 0.002,
                        "moved", "used" if layer else "not used", "t over seeds", 3,
                        0.004, -0.002, 0.01, 0.3)
            for size, experiment in guided for layer in range(LAYERS)
        ),
    )  # fmt: skip
    write_study(folder, records)
    write_tables(folder, records)
    return folder


def _cell(size: str, experiment: str, seed: int) -> CellRecord:
    identity = f"{size}-{experiment}-{seed}"
    failed = identity == "tiny-4-transition-2"
    return CellRecord(
        identity, "original" if experiment == "original" else "tuned", size, experiment, seed,
        f"cells/{identity}", "failed" if failed else "done", SIZES[size], f"{size}-base-{seed}",
        40.0, 38.0, 200_000, "train: the loss is nan at step 7" if failed else None,
        {"torch": "2.13.0"}, {"data": "b0010a02a0cc", "tokenizer": "b9539af8649a"},
    )  # fmt: skip


def _results(cell: CellRecord, rng: random.Random) -> list[Result]:
    if cell.state != "done":
        return []
    key = (cell.size, cell.parameters or 0, cell.experiment)
    rows = []
    for task, (kind, metric, count) in TASKS.items():
        value = 0.5 + rng.gauss(0, 0.03) if metric == "acc" else 20 + rng.gauss(0, 1)
        half = 0.12 if metric == "acc" else 1.5
        rows.append(
            Result(
                *key, task, metric, "high" if metric == "acc" else "low", cell.id, cell.seed, kind,
                value, half / 2, value - half, value + half, count, 0.5 if metric == "acc" else None,
                0.7382 if (task, cell.size) == ("memo-trap", "tiny") else None,
            )
        )  # fmt: skip
    loss = 5.5 - 0.3 * list(SIZES).index(cell.size)
    rows.append(Result(*key, HELD_OUT, "lm_loss", "low", cell.id, cell.seed, "validation", loss))
    return rows


def _means(results: list[Result]) -> list[Mean]:
    groups: dict[tuple, list[Result]] = {}
    for row in results:
        groups.setdefault((row.size, row.experiment, row.task, row.metric), []).append(row)
    return [
        Mean(
            one.size, one.parameters, one.experiment, one.task, one.metric, one.better, len(rows),
            value := sum(row.value for row in rows) / len(rows), value - 0.05, value + 0.05,
            one.chance, one.paper,
        )
        for rows in groups.values()
        for one in rows[:1]
    ]  # fmt: skip


def _comparisons(size: str, experiment: str, rng: random.Random) -> list[Comparison]:
    rows = []
    for baseline in ("original", "finetuned"):
        if baseline == experiment:
            continue
        key: tuple[Any, ...] = (size, SIZES[size], experiment, "memo-trap", "acc", "high")
        for seed in SEEDS:
            difference = rng.gauss(0, 0.02)
            rows.append(
                Comparison(
                    *key, difference, difference - 0.05, difference + 0.05, 0.3, 0.35, 5, 4, level="seed",
                    baseline=baseline, seed=seed, seeds=1, test="mcnemar", count=60, value=0.5 + difference,
                    baseline_value=0.5, p_holm=0.9,
                )
            )  # fmt: skip
        rows.append(
            Comparison(
                *key, 0.02, -0.02, 0.06, 0.2, level="seeds", baseline=baseline, seed=None, seeds=3, test="t",
                count=60, value=0.52, baseline_value=0.5, p_holm=0.4,
            )
        )  # fmt: skip
    return rows


def _verdict(experiment: str, task: str, rng: random.Random) -> ScalingVerdict:
    _, metric, _ = TASKS[task]
    slope = rng.gauss(0, 0.05)
    return ScalingVerdict(
        experiment, task, metric, "high" if metric == "acc" else "low", list(SIZES), list(SIZES.values()),
        [0.5, 0.52, 0.51, 0.55], 3, "seeds", slope, slope - 0.08, slope + 0.08, 0.2, 0.4, 0.6, 0.6, None,
        "flat" if task == "memo-trap" else "positive",
    )  # fmt: skip
