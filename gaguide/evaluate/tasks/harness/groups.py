"""Groups of lm-evaluation-harness: tasks with a number of their own, such as the mean of their accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaguide.errors import UserError


@dataclass(frozen=True)
class Aggregate:
    """An entry of a group's `aggregate_metric_list`: a mean over its tasks."""

    metric: str
    """Metric of the tasks."""
    filters: tuple[str, ...] | None
    """Names of the filters that count; None takes all of a task's."""
    by_size: bool
    """Whether tasks count by their number of examples."""


@dataclass(frozen=True)
class HarnessGroup:
    """A group through which tasks were named."""

    name: str
    alias: str
    """Name that tables show."""
    members: tuple[str, ...]
    """Its tasks and groups."""
    aggregates: tuple[Aggregate, ...]
    """Its numbers; () where it only names its tasks."""
    version: str


def parse_group(name: str, tree: Mapping[str, Any], members: tuple[str, ...], path: Path) -> HarnessGroup:
    """The group in the keys and values of a file. Raises `UserError` for numbers that are not means."""
    listed = tree.get("aggregate_metric_list") or []
    aggregates = []
    for entry in [listed] if isinstance(listed, Mapping) else listed:
        how = entry.get("aggregation", "mean")
        if how != "mean":
            where = f"{path}: aggregate_metric_list"
            raise UserError.of(
                where, "must be a mean, as in the harness", "write aggregation: mean", str(how)
            )
        given = entry.get("filter_list")
        filters = (given,) if isinstance(given, str) else tuple(given or ()) or None
        by_size = bool(entry.get("weight_by_size", True))
        aggregates.append(Aggregate(str(entry["metric"]), filters, by_size))
    metadata = tree.get("metadata")
    version = str(metadata.get("version", "N/A")) if isinstance(metadata, Mapping) else "N/A"
    alias = str(tree.get("group_alias") or name)
    return HarnessGroup(name, alias, members, tuple(aggregates), version)
