"""The table of results.json as Markdown, for notes and pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gaguide.evaluate.results.metric_names import ACCURACIES, MARK_NOTES, MARKS
from gaguide.numbers import fixed

_PARTS = ("task", "part", "examples", "metric", "value", "95% interval", "constant answer", "as original")
_HEAD = ("task", "examples", "metric", "value", "95% interval", "chance")


def results_markdown(results: Mapping[str, Any]) -> str:
    """A Markdown table of every metric of every task in the content of results.json."""
    lines = [f"Model: `{results['model']}`", "", _line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += map(_line, _rows(results["tasks"]))
    lines += map(_line, _group_rows(results.get("groups", {})))
    parts = list(_part_rows(results["tasks"]))
    if parts:
        lines += ["", _line(_PARTS), _line(["---"] * len(_PARTS)), *map(_line, parts)]
    return "\n".join([*lines, *_notes(results["tasks"])]) + "\n"


def _rows(tasks: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, task in tasks.items():
        for metric, value in task["metrics"].items():
            interval = _interval(value)
            chance = _number(task["chance"]) if metric in ACCURACIES else ""
            doubt = task.get("uninformative", {}).get(metric)
            shown = _number(value["value"]) + ("" if doubt is None else MARKS[doubt["reason"]])
            yield [name, str(task["count"]), metric, shown, interval, chance]


def _group_rows(groups: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, group in groups.items():
        for metric, value in group["metrics"].items():
            interval = _interval(value)
            yield [name, str(group["count"]), metric, _number(value["value"]), interval, ""]


def _notes(tasks: Mapping[str, Any]) -> Iterator[str]:
    """One footnote for each mark in either table, and why each number of a task has it."""
    parts = [part for task in tasks.values() for part in task.get("parts", {}).values()]
    doubts = [part["uninformative"].get(next(iter(part["metrics"]))) for part in parts]
    of_parts = {doubt["reason"] for doubt in doubts if doubt is not None}
    for reason, note in MARK_NOTES.items():
        whys: dict[str, list[str]] = {}
        for name, task in tasks.items():
            for metric, one in task.get("uninformative", {}).items():
                if one["reason"] == reason:
                    whys.setdefault(f"{name}: {one['why']}", []).append(metric)
        if whys:
            yield from ("", note, "", *(f"- {why} ({', '.join(names)})" for why, names in whys.items()))
        elif reason in of_parts:
            yield from ("", note)


def _part_rows(tasks: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, task in tasks.items():
        for part, found in task.get("parts", {}).items():
            metric, value = next(iter(found["metrics"].items()))
            constant, same = found["constant"], found["same_as_original"]
            doubt = found["uninformative"].get(metric)
            yield [
                name, part, str(found["count"]), metric,
                _number(value["value"]) + ("" if doubt is None else MARKS[doubt["reason"]]),
                _interval(value),
                "" if constant is None else f"{constant[1]:.4f} ({constant[0]})",
                "" if same is None else _number(same["value"]),
            ]  # fmt: skip


def _interval(value: Mapping[str, Any]) -> str:
    """The interval of a metric; empty where it has none."""
    low, high = value["low"], value["high"]
    return "" if low is None or high is None else f"{_number(low)} – {_number(high)}"


def _number(value: float | None) -> str:
    return "none" if value is None else fixed(value, 4)


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
