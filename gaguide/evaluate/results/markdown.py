"""The table of results.json as Markdown, for notes and pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_HEAD = ("task", "examples", "metric", "value", "95% interval", "chance")


def results_markdown(results: Mapping[str, Any]) -> str:
    """A Markdown table of every metric of every task in the content of results.json."""
    lines = [f"Model: `{results['model']}`", "", _line(_HEAD), _line(["---"] * len(_HEAD))]
    return "\n".join([*lines, *map(_line, _rows(results["tasks"]))]) + "\n"


def _rows(tasks: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, task in tasks.items():
        for metric, value in task["metrics"].items():
            interval = f"{_number(value['low'])} – {_number(value['high'])}"
            chance = _number(task["chance"]) if metric in ("acc", "acc_norm") else ""
            yield [name, str(task["count"]), metric, _number(value["value"]), interval, chance]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
