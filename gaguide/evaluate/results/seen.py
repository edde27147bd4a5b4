"""Results of examples that the training text contains (seen) and of the others (clean); without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from gaguide.data.overlap.report import EXAMPLES_FILE
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.evaluate.results.intervals import Groups, Metric, proportion, rate
from gaguide.evaluate.results.metric_names import SHARES
from gaguide.evaluate.results.outcomes import TaskExamples, read_examples

By = Literal["words", "tokens"]


@dataclass(frozen=True)
class SplitMetric:
    """One metric of one task on all, clean and seen examples."""

    task: str
    """Name of the task."""
    metric: str
    """Name of the metric."""
    counts: Mapping[str, int]
    """Examples in `all`, `clean` and `seen`, without those that lack a finite score."""
    left_out: int
    """Examples without a finite score."""
    values: Mapping[str, Metric | None]
    """The metric on `all`, `clean` and `seen`; None where there is no example."""
    too_short: int = 0
    """Examples in `clean` that are too short to be looked for by words: they may have been seen."""


def split_results(results: Path, overlap: Path, by: By = "words") -> list[SplitMetric]:
    """The metrics of an evaluation's folder, split by what `gaguide data overlap` wrote into `overlap`.

    by: whether an example is seen by its runs of words or of tokens. Raises a `UserError` where the overlap
    is of other examples, or lacks some.
    """
    seen = _seen_rows(overlap, by)
    path = results / "examples.parquet"
    if not path.is_file():
        remedy = "give the output folder of a complete evaluation"
        raise UserError.of("RESULTS", f"does not have {path.name}", remedy, str(results))
    rows = pq.read_table(path, columns=["task", "id", "prompt", "continuations"]).to_pylist()
    with FaultCollector() as faults:
        faults.add(*_mismatches(rows, seen, overlap))
    found = []
    for task, examples in read_examples(results).items():
        is_seen, is_short = (
            np.array([bool(seen[task, one][name]) for one in examples.ids]) for name in ("seen", "short")
        )
        found += [_split(task, metric, examples, is_seen, is_short) for metric in examples.outcomes]
    return found


def _seen_rows(overlap: Path, by: By) -> dict[tuple[str, str], dict[str, Any]]:
    path = overlap / EXAMPLES_FILE
    if not path.is_file():
        remedy = "give the --output of `gaguide data overlap`"
        raise UserError.of("--overlap", f"does not have {EXAMPLES_FILE}", remedy, str(overlap))
    columns = ["task", "id", "prompts", "continuations", "comparable", f"seen_{by}"]
    rows = pq.read_table(path, columns=columns).to_pylist()
    return {
        (row["task"], row["id"]): row
        | {"seen": row[f"seen_{by}"], "short": by == "words" and not row["comparable"]}
        for row in rows
    }


def _mismatches(
    rows: Sequence[Mapping[str, Any]], seen: Mapping[tuple[str, str], Mapping[str, Any]], overlap: Path
) -> list[Fault]:
    absent: dict[str, int] = {}
    other: dict[str, int] = {}
    for row in rows:
        found = seen.get((row["task"], row["id"]))
        if found is None:
            absent[row["task"]] = absent.get(row["task"], 0) + 1
        elif not _is_same(row, found):
            other[row["task"]] = other.get(row["task"], 0) + 1
    remedy = "run `gaguide data overlap` again, with the tasks of this evaluation"
    return [
        Fault(f"task {task}", f"{count} of its examples {what} {overlap}", remedy)
        for counts, what in ((absent, "are not in"), (other, "differ from the examples with the same id in"))
        for task, count in counts.items()
    ]


def _is_same(row: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether an evaluated example, which may have demonstrations before it, is the one that was searched."""
    same = not row["continuations"] or row["continuations"] == found["continuations"]
    if row["prompt"] is None:  # a block of shards, or a text without a prompt
        return same
    return same and str(row["prompt"]).endswith(found["prompts"][0])


def _split(
    task: str, metric: str, examples: TaskExamples, is_seen: np.ndarray, is_short: np.ndarray
) -> SplitMetric:
    values = np.asarray(examples.outcomes[metric], float)
    weights = examples.weights.get(metric, np.ones(len(values)))
    finite = np.isfinite(values)
    known = finite & (weights > 0)
    chosen = {"all": known, "clean": known & ~is_seen, "seen": known & is_seen}
    return SplitMetric(
        task,
        metric,
        {name: int(kept.sum()) for name, kept in chosen.items()},
        int((~finite).sum()),
        {name: _metric(metric, values, weights, kept, examples.groups) for name, kept in chosen.items()},
        int((chosen["clean"] & is_short).sum()),
    )


def _metric(
    metric: str, values: np.ndarray, weights: np.ndarray, kept: np.ndarray, groups: Groups
) -> Metric | None:
    """The metric on the examples in `kept`, as `summarize` computes it; `weights`: their tokens, or 1."""
    chosen, units = values[kept], weights[kept]
    if not len(chosen):
        return None
    of = None if groups is None else [groups[at] for at in np.flatnonzero(kept).tolist()]
    if metric in SHARES:
        return proportion([bool(value) for value in chosen], of)
    return rate((chosen * units).tolist(), [int(unit) for unit in units], of)
