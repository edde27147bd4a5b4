"""Whether an evaluation of a known model reproduces its published figures; without torch.

The figures and their source are in golden.yaml. They are means over all examples of a task, so a comparison
needs the whole data set, the same file byte for byte, and fp32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gaguide.config.validation import validation_faults
from gaguide.config.yaml_tree import read_yaml
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.evaluate.results.earlier import read_earlier
from gaguide.evaluate.results.numbers import log_sum_exp
from gaguide.log import run_files

_TOLERANCES = {"loss": 0.002, "total_logprob": 0.005}
"""Largest difference of a mean, in nats: scores of one example differ by up to about 2e-4 between devices and
orders of summation, and those of other weights by far more."""
_HALF_AN_EXAMPLE = 0.5
UNDECIDED = 0.004
"""Classes within this many nats count as undecided."""


class Figures(BaseModel):
    """Figures of one model on one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: float
    """Mean of the examples' losses, in nats."""
    accuracy: float | None = None
    """Share of right answers."""
    total_logprob: float | None = None
    """Mean log of the classes' joint probability."""
    undecided: float = Field(default=0.0, ge=0, le=1)
    """Share of examples whose best two classes are within `UNDECIDED`; rounding decides their accuracy."""


class GoldenTask(BaseModel):
    """The published figures of one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1)
    """Number of examples."""
    sha256: str
    """SHA-256 of the data file."""
    figures: Mapping[str, Figures]
    """Model → its figures."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: Mapping[str, GoldenTask]


@dataclass(frozen=True)
class Check:
    """One figure that was compared."""

    task: str
    """Name of the task."""
    figure: str
    """Field of `Figures`."""
    expected: float
    """The published value."""
    found: float
    """The evaluation's value; NaN where scores are not finite."""
    tolerance: float
    """Largest difference that counts as equal."""

    @property
    def matches(self) -> bool:
        """Whether both are equal within the tolerance."""
        return abs(self.found - self.expected) <= self.tolerance


@dataclass(frozen=True)
class GoldenResult:
    """The comparison of one evaluation."""

    reference: str
    """Model whose figures they are."""
    checks: tuple[Check, ...]
    """Every figure compared."""
    missing: tuple[str, ...]
    """Tasks with figures that were not evaluated."""
    meaning: tuple[str, ...]
    """Likely causes of the differences, one sentence each; () where everything matches."""

    @property
    def matches(self) -> bool:
        """Whether every figure compared matches."""
        return all(check.matches for check in self.checks)


def read_figures(path: Path | None = None) -> Mapping[str, GoldenTask]:
    """Task → published figures, from a file in golden.yaml's form; None reads the shipped one."""
    if path is None:
        with as_file(files("gaguide.evaluate.results") / "golden.yaml") as shipped:
            return read_figures(shipped)
    tree = {"tasks": {str(key): value for key, value in read_yaml(path, "file of figures").items()}}
    try:
        return _File(**tree).tasks
    except ValidationError as error:
        raise UserError(validation_faults(error, _File, tree, str(path))) from None


def compare_golden(
    folder: Path, figures: Mapping[str, GoldenTask], reference: str | None = None
) -> GoldenResult:
    """The evaluation in `folder` compared with `figures` of `reference`; None takes the model's own name.

    Raises `UserError` where a comparison would mean nothing: another data file, only some of the examples,
    demonstrations, an unknown reference, no task with figures.
    """
    results = _read_results(folder)
    evaluated = {name: results["tasks"][name] for name in figures if name in results["tasks"]}
    known = list(dict.fromkeys(name for task in figures.values() for name in task.figures))
    chosen = reference or Path(str(results["model"])).name
    with FaultCollector() as faults:
        if not evaluated:
            remedy = f"evaluate {', '.join(figures)}"
            faults.add(Fault("--results", "has none of the tasks with figures", remedy, str(folder)))
        if chosen not in known:
            problem = f"must be one of {', '.join(known)}"
            faults.add(Fault("--reference", problem, "name the model whose figures are expected", chosen))
        for name, task in evaluated.items():
            faults.add(*_doubts(name, task, figures[name], results["settings"]))
    found = _measure_all(folder, evaluated)
    checks = {one: _checks(found, figures, one) for one in known}
    return GoldenResult(
        chosen,
        tuple(checks[chosen]),
        tuple(name for name in figures if name not in evaluated),
        tuple(_meaning(chosen, checks, str(results["settings"].get("dtype")))),
    )


def measured_tasks(folder: Path, names: Sequence[str], reference: str | None = None) -> dict[str, GoldenTask]:
    """The evaluation in `folder` as figures of `reference`, for those of the tasks `names` that it has.

    Raises `UserError` where it has none.
    """
    results = _read_results(folder)
    evaluated = [name for name in names if name in results["tasks"]]
    if not evaluated:
        remedy = f"evaluate {', '.join(names)}"
        raise UserError.of("--results", "has none of the tasks with figures", remedy, str(folder))
    chosen = reference or Path(str(results["model"])).name
    return {
        name: GoldenTask(
            count=results["tasks"][name]["count"],
            sha256=results["tasks"][name]["sha256"],
            figures={chosen: figures},
        )
        for name, figures in _measure_all(folder, evaluated).items()
    }


def _read_results(folder: Path) -> dict[str, Any]:
    results = read_earlier(folder)
    if results is None:
        remedy = "give the output folder of a complete evaluation"
        raise UserError.of("--results", f"does not have {run_files.RESULTS}", remedy, str(folder))
    return results


def _measure_all(folder: Path, names: Iterable[str]) -> dict[str, Figures]:
    rows = pq.read_table(folder / "examples.parquet").to_pylist()
    return {name: measure([row for row in rows if row["task"] == name]) for name in names}


def _doubts(
    name: str, task: Mapping[str, Any], golden: GoldenTask, settings: Mapping[str, Any]
) -> Iterator[Fault]:
    field, remedy = f"task {name}", "evaluate it again without --limit and --shots"
    if task["sha256"] != golden.sha256:
        problem = f"its data are not the published file (sha256 {golden.sha256[:12]}…)"
        yield Fault(field, problem, "take the file unchanged, line ends included", task["source"])
    elif task["count"] != golden.count:
        problem = f"has {task['count']:,} of the {golden.count:,} examples; the figures are for all of them"
        yield Fault(field, problem, remedy)
    if settings.get("shots"):
        yield Fault(field, "has demonstrations, but the figures are without any", remedy)


def measure(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """The figures of the rows of one task in examples.parquet; NaN where scores are not finite."""
    count = len(rows)
    if any(not row["finite"] for row in rows):
        return Figures(loss=math.nan, accuracy=math.nan, total_logprob=math.nan)
    loss = math.fsum(row["value"] for row in rows) / count
    if rows[0]["kind"] != "classification":
        return Figures(loss=loss)
    totals = [log_sum_exp(row["log_probabilities"]) for row in rows]
    margins = [sorted(row["log_probabilities"])[-2:] for row in rows]
    return Figures(
        loss=loss,
        accuracy=sum(row["correct"] for row in rows) / count,
        total_logprob=math.fsum(totals) / count,
        undecided=sum(best - second < UNDECIDED for second, best in margins) / count,
    )


def _checks(found: Mapping[str, Figures], figures: Mapping[str, GoldenTask], reference: str) -> list[Check]:
    checks = []
    for name, measured in found.items():
        golden = figures[name].figures.get(reference)
        if golden is None:
            continue
        accuracy = golden.undecided + _HALF_AN_EXAMPLE / figures[name].count
        for figure, tolerance in {"accuracy": accuracy, **_TOLERANCES}.items():
            expected, value = getattr(golden, figure), getattr(measured, figure)
            if expected is not None and value is not None:
                checks.append(Check(name, figure, expected, value, tolerance))
    return checks


def _meaning(reference: str, checks: Mapping[str, Sequence[Check]], dtype: str) -> list[str]:
    wrong = [check for check in checks[reference] if not check.matches]
    if not wrong:
        return []
    if any(math.isnan(check.found) for check in wrong):
        return ["scores are not finite: the weights contain NaN or infinity, or overflowed in fp16"]
    if dtype != "fp32":
        return [f"evaluated in {dtype}, but the figures are for fp32: evaluate with --dtype fp32"]
    for other, compared in checks.items():
        if compared and all(check.matches for check in compared):
            return [f"these are the figures of {other}: the folder or name of the model is another one"]
    if {check.figure for check in wrong} == {"total_logprob"}:
        return [
            "the classes' shares match but their probabilities do not: text before or after every prompt "
            "differs from the published setup, such as a beginning-of-text token"
        ]
    found = [
        "the weights, the tokenizer or the computation differ: compare the files' SHA-256 (`identity` in "
        "results.json) with the hub's, then run the tests of tests/evaluate/test_lm_eval.py"
    ]
    if len({check.task for check in wrong}) < len({check.task for check in checks[reference]}):
        right = sorted({one.task for one in checks[reference]} - {one.task for one in wrong})
        found.append(
            f"{', '.join(right)} match, so weights and tokenizer are likely right: look at the prompts"
        )
    return found
