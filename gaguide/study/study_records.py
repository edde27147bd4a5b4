"""All records of a study, and lookups in them by key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gaguide.evaluate.results.metric_names import GROUP_ACC
from gaguide.grouping import grouped
from gaguide.study.analysis_records import (
    Change,
    Gain,
    HeadAttention,
    HeadKnockOut,
    HeadVerdict,
    LexiconShare,
    LossCost,
)
from gaguide.study.records import HELD_OUT, CellRecord, Comparison, LeftOut, Mean, Result, ScalingVerdict


@dataclass(frozen=True)
class StudyRecords:
    """All records of a study; the tables are empty until it is collected."""

    name: str
    """Name of the study."""
    study: Mapping[str, Any]
    """The study file, as resolved."""
    provenance: Mapping[str, Any]
    """Versions, machine, commit and time of collection."""
    cells: tuple[CellRecord, ...]
    """Every cell."""
    results: tuple[Result, ...] = ()
    """Metrics of each cell."""
    means: tuple[Mean, ...] = ()
    """Means over seeds."""
    comparisons: tuple[Comparison, ...] = ()
    """Experiments compared with their baselines."""
    verdicts: tuple[ScalingVerdict, ...] = ()
    """How scores move with size."""
    shares: tuple[LexiconShare, ...] = ()
    """Shares of examples that contain a lexicon."""
    gains: tuple[Gain, ...] = ()
    """Gains on examples with and without guided words."""
    attention: tuple[HeadAttention, ...] = ()
    """Attention of each guided or measured head."""
    losses: tuple[LossCost, ...] = ()
    """Held-out loss compared with the baselines."""
    changes: tuple[Change, ...] = ()
    """Every example under every guided experiment."""
    left_out: tuple[LeftOut, ...] = ()
    """Numbers of finished cells that are in none of the tables above."""
    knock_outs: tuple[HeadKnockOut, ...] = ()
    """Loss of each cell's model without each of its heads."""
    head_verdicts: tuple[HeadVerdict, ...] = ()
    """Over seeds: is a head's attention moved, and is the head used?"""

    @cached_property
    def index(self) -> StudyIndex:
        """The records by key."""
        return StudyIndex(self)


class StudyIndex:
    """Lookups in a study's records; every table of records is read once, when it is first asked for."""

    def __init__(self, study: StudyRecords) -> None:
        self._study = study

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """Sizes with results, smallest first; those of the cells before there are results."""
        known = self.parameters
        if not known:
            return tuple(dict.fromkeys(cell.size for cell in self._study.cells))
        return tuple(sorted(known, key=lambda size: known[size]))

    @cached_property
    def parameters(self) -> Mapping[str, int]:
        """Size → parameters, of sizes with results."""
        return {mean.size: mean.parameters for mean in self._study.means}

    @cached_property
    def experiments(self) -> tuple[str, ...]:
        """The study's experiments, in its order."""
        return tuple(dict.fromkeys(cell.experiment for cell in self._study.cells if cell.role != "base"))

    @cached_property
    def baselines(self) -> tuple[str, ...]:
        """Experiments that others are compared with: `finetuned` and `original`, then those of the file."""
        known = dict.fromkeys(row.baseline for row in self._study.comparisons)
        usual = [name for name in ("finetuned", "original") if name in known]
        return tuple(dict.fromkeys([*usual, *known]))

    @cached_property
    def main_metrics(self) -> Mapping[str, str]:
        """Task → the metric that its evaluation lists first."""
        found: dict[str, str] = {}
        for row in self._study.means:
            if row.task != HELD_OUT:
                found.setdefault(row.task, row.metric)
        return found

    @cached_property
    def table_metrics(self) -> Sequence[tuple[str, str]]:
        """(task, metric) of the tables' rows: main metrics, each followed by that of whole groups."""
        measured = {(row.task, row.metric) for row in self._study.means}
        return tuple(
            (task, metric)
            for task, main in self.main_metrics.items()
            for metric in (main, GROUP_ACC)
            if (task, metric) in measured
        )

    @cached_property
    def means(self) -> Mapping[tuple[str, str, str, str], Mean]:
        """(size, experiment, task, metric) → mean."""
        return {(row.size, row.experiment, row.task, row.metric): row for row in self._study.means}

    @cached_property
    def results(self) -> Mapping[tuple[str, str, str, str], Sequence[Result]]:
        """(size, experiment, task, metric) → results of the cells."""
        return _grouped(self._study.results, "size", "experiment", "task", "metric")

    @cached_property
    def comparisons(self) -> Mapping[tuple[str, str, str, str, str], Sequence[Comparison]]:
        """(size, experiment, baseline, task, metric) → comparisons."""
        return _grouped(self._study.comparisons, "size", "experiment", "baseline", "task", "metric")

    @cached_property
    def attention(self) -> Mapping[str, Sequence[HeadAttention]]:
        """Experiment → attention of its heads."""
        return {key[0]: rows for key, rows in _grouped(self._study.attention, "experiment").items()}

    @cached_property
    def attention_by_layer(self) -> Mapping[tuple[str, int, str], Sequence[HeadAttention]]:
        """(size, layer, experiment) → attention of heads."""
        return _grouped(self._study.attention, "size", "layer", "experiment")

    @cached_property
    def losses(self) -> Mapping[tuple[str, str], Sequence[LossCost]]:
        """(experiment, baseline) → costs in loss of all tokens."""
        rows = [row for row in self._study.losses if row.near is None]
        return _grouped(rows, "experiment", "baseline")

    @cached_property
    def changes(self) -> Mapping[tuple[str, str], Sequence[Change]]:
        """(experiment, baseline) → changes of examples."""
        return _grouped(self._study.changes, "experiment", "baseline")


def _grouped(rows: Iterable[Any], *names: str) -> dict[Any, list[Any]]:
    return grouped((tuple(getattr(row, name) for name in names), row) for row in rows)
