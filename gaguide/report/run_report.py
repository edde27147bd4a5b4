"""The report that compares runs: their numbers, curves and guided heads, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Sequence

from gaguide.report.document import Cell, Chart, Part, Preformatted, Report, Row, Section, Table, folded
from gaguide.report.run_figures import draw_curves, draw_heads
from gaguide.report.run_findings import cautions, findings
from gaguide.report.run_measures import FURTHER, Measure, Value, measures
from gaguide.report.run_records import RunRecord
from gaguide.report.style import series_style
from gaguide.report.text import ABSENT, csv_text, interval


def run_report(runs: Sequence[RunRecord]) -> Report:
    """Everything that the runs' records say; the first run is the baseline."""
    rows = measures(runs)
    table = comparison_table(runs, rows)
    charts = (
        Chart(
            "curves",
            "Training",
            "Lines: training batches. Circles: held-out text. The first run is grey.",
            lambda: draw_curves(runs),
        ),
        Chart(
            "heads",
            "Guided heads",
            "Attention on a head's guided words by layer, held-out text. "
            "Hollow marks: before training; filled marks: after.",
            lambda: draw_heads(runs),
        ),
    )
    return Report(
        title="Comparison of runs",
        findings=tuple(findings(runs)),
        cautions=tuple(cautions(runs)),
        summary=comparison_table(runs, [row for row in rows if row.section != FURTHER]),
        tables=(table,),
        charts=charts,
        body=(table, *charts, *_heads(runs), _provenance(runs)),
        csv_files=lambda: {"": _csv(runs, rows)},
    )


def comparison_table(runs: Sequence[RunRecord], rows: Sequence[Measure]) -> Table:
    """A column for each run, a row for each measure."""
    return Table(
        name="runs",
        title="Comparison",
        header=("", *(run.name for run in runs)),
        rows=tuple((row.name, tuple(map(_cell, row.values))) for row in rows),
        note="Differences (Δ) are to the first run and not tested. Bold: best number. "
        "Brackets: 95% interval of the number itself.",
        groups=tuple(row.section for row in rows),
        colours=("", *_colours(runs)),
    )


def _cell(value: Value) -> Cell:
    count = "" if value.count is None else f"n = {value.count:,}"
    details = ", ".join(filter(None, [interval(value.low, value.high), count]))
    change = f"Δ {value.change}" if value.change else ""
    return Cell(value.text, value.best, small="\n".join(filter(None, [change, details])))


def _colours(runs: Sequence[RunRecord]) -> list[str]:
    return [series_style(index)[0] for index in range(len(runs))]


def _heads(runs: Sequence[RunRecord]) -> list[Section]:
    """Attention of every guided head before and after, as a folded table; empty where no run has one."""
    masses: dict[tuple[int, int, str], list[list[str]]] = {}
    for index, run in enumerate(runs):
        for when, validation in enumerate((run.before, run.after)):
            for mass in validation.per_head if validation else ():
                key = (mass.layer, mass.head, mass.pattern)
                cells = masses.setdefault(key, [[ABSENT, ABSENT] for _ in runs])
                cells[index][when] = ABSENT if mass.attention is None else f"{mass.attention:.3f}"
    if not masses:
        return []
    rows: list[Row] = []
    for (layer, head, pattern), cells in sorted(masses.items()):
        changes = [Cell(f"{before} → {after}") for before, after in cells]
        rows.append((str(layer), (Cell(str(head)), Cell(pattern), *changes)))
    return [
        folded(
            Table(
                name="head-attention",
                title="Attention of every guided head, before → after",
                header=("layer", "head", "words", *(run.name for run in runs)),
                rows=tuple(rows),
                colours=("", "", "", *_colours(runs)),
            )
        )
    ]


def _provenance(runs: Sequence[RunRecord]) -> Section:
    """Folders, versions, fingerprints and configurations; differences from the first run are set off."""
    rows: list[Row] = [("folder", tuple(Cell(str(run.folder)) for run in runs))]
    groups = [""]
    for title, attribute in (("Versions", "versions"), ("Fingerprints", "fingerprints")):
        for name in dict.fromkeys(name for run in runs for name in getattr(run, attribute)):
            values = [getattr(run, attribute).get(name, ABSENT) for run in runs]
            # The fingerprint of the whole run differs between any two runs.
            cells = tuple(Cell(value, differs=name != "run" and value != values[0]) for value in values)
            rows.append((name, cells))
            groups.append(title)
    table = Table(
        name="records",
        title="",
        header=("", *(run.name for run in runs)),
        rows=tuple(rows),
        groups=tuple(groups),
        colours=("", *_colours(runs)),
        monospace=True,
    )
    configurations: list[Part] = [
        Section(f"config-{index}", f"Configuration of {run.name}", (Preformatted(run.config),), folded=True)
        for index, run in enumerate(runs)
        if run.config
    ]
    return Section("provenance", "Where the numbers come from", (table, *configurations))


def _csv(runs: Sequence[RunRecord], rows: Sequence[Measure]) -> str:
    """One line per run and measure."""
    columns = ("section", "measure", "run", "value", "low", "high", "count", "difference_to_first")
    return csv_text(
        columns,
        (
            (
                row.section, row.name, run.name, value.text if value.number is None else value.number,
                value.low, value.high, value.count, value.difference,
            )
            for row in rows
            for run, value in zip(runs, row.values, strict=True)
        ),
    )  # fmt: skip
