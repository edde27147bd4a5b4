"""A study's records by key, made in one pass over them, so that a table of them takes linear time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gaguide.evaluate.results.metric_names import GROUP_ACC
from gaguide.study.records import HELD_OUT, Comparison, Mean, Result

if TYPE_CHECKING:
    from gaguide.study.analysis_records import Change, HeadAttention, LossCost
    from gaguide.study.record_files import StudyRecords


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
    found: dict[tuple[Hashable, ...], list[Any]] = defaultdict(list)
    for row in rows:
        found[tuple(getattr(row, name) for name in names)].append(row)
    return dict(found)
